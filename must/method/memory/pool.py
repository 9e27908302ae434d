"""One pass over the unlabeled images: vectors and probabilities of all of them, for the memory and the labels; and what
the predictions alone say about a model. N images, K classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from must.base.exits import is_first_rank
from must.base.parameters import require
from must.base.progress import bar
from must.base.text import counted, printable
from must.data.augment.normalize import normalize
from must.data.loading.loader import EvalBatch, EvalSource
from must.method.model.description import CheckResult
from must.method.model.masked_vit import MaskedViT
from must.method.model.vectors import FITTED, Whitening, flatten_tokens, join_vectors

KEPT_FLAT = 4 * FITTED  # images whose tokens are kept until the whitening is fitted; above, a first pass fits it
FEWEST = 50  # images; with fewer there are no warnings
ROUNDING = 0.01  # of the sum of an image's probabilities in half precision
COLLAPSED = 1 / 3  # ratio of the effective numbers of classes after and before; a lower one is a warning
DEAD = 0.005  # share of the images of a zero-shot class of which the model predicts none


@dataclass
class Pool:
    """N images that could be decoded; V numbers a vector, K classes."""

    numbers: Tensor  # int64 [N], in the split
    sources: list[str]
    vectors: Tensor  # float16 [N, V], unit vectors
    probabilities: Tensor  # float16 [N, K], of the model
    others: Tensor  # float16 [M, N, K], of the other models
    tokens: Whitening
    embedding: Whitening


def run_model(
    model: MaskedViT, source: EvalSource, device: torch.device, activity: str
) -> Iterator[tuple[EvalBatch, Tensor, Tensor, Tensor, Tensor]]:
    """(batch, images [B, 3, H, W] normalised, logits [B, K], unit features float32 [B, D], tokens as of
    `flatten_tokens`) of all images. Does not change the state of torch's random generator."""
    model, decodable = model.to(device).eval(), False
    progress = bar(total=len(source.numbers), unit="img", desc=activity, leave=False, quiet=not is_first_rank())
    with progress, torch.random.fork_rng(devices=[]):  # loaders draw a seed from it
        for batch in source:
            images = normalize(batch.pixels.to(device), source.preprocess)
            logits, feature, tokens = model.classify(images)
            decodable = True
            yield batch, images, logits, feature.float(), flatten_tokens(model.tower, tokens)
            progress.update(len(batch.samples))
    require(decodable, "none of the split's images can be decoded; check them: must index verify")


@torch.inference_mode()
def read_pool(
    model: MaskedViT,
    source: EvalSource,
    device: torch.device,
    others: tuple[MaskedViT, ...] = (),
    whitening: tuple[Whitening, Whitening] | None = None,
) -> Pool:
    """Runs the model, and `others` for their probabilities only, on every image once. `whitening`: as of
    `fit_whitening`, where several processes read parts of one pool."""
    others = tuple(other.to(device).eval() for other in others)
    if whitening is None and len(source.numbers) > KEPT_FLAT:
        whitening = fit_whitening(model, source, device)
    if whitening is not None:
        whitening = whitening[0].to(device), whitening[1].to(device)
    rows, sources = list[tuple[Tensor, ...]](), list[str]()
    for batch, images, logits, feature, flat in run_model(model, source, device, "predictions"):
        if whitening is not None:
            feature, flat = join_vectors(whitening[0](flat), whitening[1](feature)).half(), flat[:, :0]
        stacked = torch.stack([logits.float(), *(other(images).float() for other in others)], 1)  # [B, 1 + M, K]
        rows.append((batch.samples, feature.cpu(), flat.half().cpu(), stacked.softmax(-1).half().cpu()))
        sources += batch.sources
    numbers, vectors, flats, P = (torch.cat(parts) for parts in zip(*rows, strict=True))
    if whitening is None:
        whitening = Whitening.fit(flats), Whitening.fit(vectors)
        vectors = join_vectors(whitening[0](flats), whitening[1](vectors)).half()
    P = P.transpose(0, 1).contiguous()
    bad = [sources[row] for row in (~P.isfinite().all(2).all(0)).nonzero().flatten().tolist()]
    count, example = counted(len(bad), "image"), printable("".join(bad[:1]))
    require(not bad, f"the model's probabilities of {count} are not finite numbers, such as of {example}")
    return Pool(numbers, sources, vectors, P[0], P[1:], whitening[0].cpu(), whitening[1].cpu())


@torch.inference_mode()
def fit_whitening(model: MaskedViT, source: EvalSource, device: torch.device) -> tuple[Whitening, Whitening]:
    """The whitenings of tokens and embedding, from at most FITTED of the source's images, at even intervals."""
    numbers, images = source.numbers, len(source.numbers)
    count = min(images, FITTED)
    try:
        source.numbers = [numbers[n * images // count] for n in range(count)]
        outputs = run_model(model, source, device, "features")
        features, flats = zip(*((feature.cpu(), flat.half().cpu()) for *_, feature, flat in outputs), strict=True)
    finally:
        source.numbers = numbers
    return Whitening.fit(torch.cat(flats)), Whitening.fit(torch.cat(features))


def join_pools(parts: Sequence[Pool]) -> Pool:
    """The parts of a pool, which were read with one whitening, in the order of the images' numbers."""
    order = torch.cat([part.numbers for part in parts]).argsort()
    sources = [source for part in parts for source in part.sources]

    def join(name: str, dim: int = 0) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts], dim).index_select(dim, order)

    return Pool(
        join("numbers"), [sources[index] for index in order.tolist()], join("vectors"), join("probabilities"),
        join("others", 1), parts[0].tokens, parts[0].embedding,
    )  # fmt: skip


def subsample(source: EvalSource, limit: int) -> EvalSource:
    """Limits the source to `limit` images of the split, evenly spread; a process keeps its share of them."""
    images = len(source)
    if images > limit:
        source.numbers = [n for n in source.numbers if n * limit // images > (n - 1) * limit // images]
    return source


class Predicted(NamedTuple):
    labels: Tensor  # int64 [N], the most probable class; -1: none of the classes is more probable
    confidence: Tensor  # float [N], its probability

    @classmethod
    def from_probabilities(cls, probabilities: Tensor) -> Self:
        """From [N, K]; what a row lacks of 1 is the probability of none of the classes."""
        confidence, labels = probabilities.float().max(-1)
        none = 1 - probabilities.float().sum(-1)
        shown = (none > confidence) & (none > ROUNDING)
        return cls(labels.where(~shown, -1), confidence.where(~shown, none))


def compare_predictions(before: Predicted, after: Predicted, classes: list[str]) -> CheckResult:
    """The check without labels: how many classes a model predicts, and whether it collapsed. `before`, `after`: of the
    zero-shot and the adapted model for the same images.

    No number without labels was found that tells a model that gained from one that lost (docs/memory.md), so the check
    warns of collapse only."""
    counts = [torch.bincount(p.labels[p.labels >= 0], minlength=len(classes)) for p in (before, after)]
    images = len(before.labels)
    dead = (counts[0] > max(1, DEAD * images)) & (counts[1] == 0)
    effective = [count_effective(count) for count in counts]
    warnings = []
    if not bool(after.confidence.isfinite().all()):
        warnings.append("the model's probabilities are not finite numbers")
    elif images >= FEWEST and effective[1] < COLLAPSED * effective[0]:
        warnings.append(
            f"the model predicts few of the classes: effectively {effective[1]:.1f}, zero-shot {effective[0]:.1f}"
        )
    return CheckResult(
        images=images,
        changed=mean(before.labels != after.labels),
        confidence_before=mean(before.confidence),
        confidence_after=mean(after.confidence),
        effective_before=round(effective[0], 2),
        effective_after=round(effective[1], 2),
        dead_classes=[classes[k] for k in torch.nonzero(dead).flatten().tolist()],
        warnings=warnings,
    )


def count_effective(counts: Tensor) -> float:
    """exp(entropy) of the classes' shares, `counts` [K]: K for equal shares, 1 for one class."""
    shares = counts.double() / max(1, int(counts.sum()))
    return float(torch.special.entr(shares).sum().exp())


def mean(values: Tensor) -> float:
    return round(float(values.float().mean()), 5) if len(values) else 0.0
