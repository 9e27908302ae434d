"""Start values measured before the first step, for --mask-token mean and --confident-share."""

import torch
from torch import Tensor

from must.data.augment.normalize import normalize
from must.data.loading.loader import EvalSource
from must.method.model.bundle import Bundle
from must.method.model.masked_vit import MaskedViT
from must.method.select.features import subsample

MEASURED = 2_000  # images whose zero-shot confidence gives the threshold
MAX_THRESHOLD = 0.98  # the largest threshold: an overconfident model has many images at 1
MASK_TOKEN_IMAGES = 256  # the first images of the split, whose mean patch initializes the mask token


def start_mask_token(zero_shot: Bundle, source: EvalSource, device: torch.device) -> None:
    """Initializes the mask token with the mean patch. Every process calls this and reads the same images. If none can
    be decoded, the token stays random, and training reports it."""
    source.numbers = source.numbers[:MASK_TOKEN_IMAGES]
    sums = [normalize(batch.pixels, source.preprocess).sum(0) for batch in source]
    if sums:
        mean = torch.stack(sums).sum(0) / (len(source.numbers) - source.skipped)
        zero_shot.model.start_mask_token(mean.to(device))


def threshold_of(share: float, confidence: Tensor) -> float:
    """The confidence that a `share` of the images reaches; `confidence` [N]. Without images it is 0."""
    return min(float(confidence.float().quantile(1 - share)), MAX_THRESHOLD) if len(confidence) else 0.0


@torch.inference_mode()
def zero_shot_confidence(zero_shot: MaskedViT, source: EvalSource, device: torch.device) -> Tensor:
    """[N]: the zero-shot confidence of at most 2,000 images; undecodable ones are skipped."""
    confidence = [
        zero_shot(normalize(batch.pixels.to(device), source.preprocess)).float().softmax(-1).amax(-1).cpu()
        for batch in subsample(source, MEASURED)
    ]
    return torch.cat(confidence) if confidence else torch.empty(0)
