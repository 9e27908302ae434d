"""What is measured before the first step: --mask-token mean and --confident-share."""

import torch
from torch import Tensor

from must.data.augment.normalize import normalize
from must.data.loading.loader import EvalSource
from must.method.model.bundle import Bundle
from must.method.model.masked_vit import MaskedViT
from must.method.select.features import subsample

MEASURED = 2_000  # images whose zero-shot confidence the threshold follows from
SUREST = 0.98  # largest such threshold: many images of an overconfident model are at 1
LOOKED_AT = 256  # images, the first of the split, whose mean patch the mask token starts as


def start_mask_token(zero_shot: Bundle, source: EvalSource, device: torch.device) -> None:
    """Every process calls this and looks at the same images. Where none can be decoded the token stays random, and
    training will tell."""
    source.numbers = source.numbers[:LOOKED_AT]
    sums = [normalize(batch.pixels, source.preprocess).sum(0) for batch in source]
    if sums:
        mean = torch.stack(sums).sum(0) / (len(source.numbers) - source.skipped)
        zero_shot.model.start_mask_token(mean.to(device))


def threshold_of(share: float, confidence: Tensor) -> float:
    """The confidence that the `share` of the images reaches; `confidence` [N]. Without images it is 0."""
    return min(float(confidence.float().quantile(1 - share)), SUREST) if len(confidence) else 0.0


@torch.inference_mode()
def zero_shot_confidence(zero_shot: MaskedViT, source: EvalSource, device: torch.device) -> Tensor:
    """[N], of 2,000 images at most; those that can be decoded."""
    confidence = [
        zero_shot(normalize(batch.pixels.to(device), source.preprocess)).float().softmax(-1).amax(-1).cpu()
        for batch in subsample(source, MEASURED)
    ]
    return torch.cat(confidence) if confidence else torch.empty(0)
