"""One pass over the unlabeled images: vectors and probabilities of all of them, for the memory and the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from must.base.parameters import require
from must.base.progress import watched
from must.data.augment.normalize import normalize
from must.data.loading.loader import EvalSource
from must.method.model.masked_vit import MaskedViT
from must.method.model.vectors import FITTED, Whitening, flatten_tokens, join_vectors

KEPT_FLAT = 4 * FITTED  # images whose tokens are kept until the whitening is fitted; above, a first pass fits it


@dataclass
class Pool:
    """N images that could be decoded; V numbers a vector, K classes."""

    numbers: Tensor  # int64 [N], in the split
    sources: list[str]
    vectors: Tensor  # float16 [N, V], unit vectors
    probabilities: Tensor  # float16 [N, K], of the model
    others: Tensor  # float16 [M, N, K], of the other models
    fit: Tensor  # float32 [N], the largest logit, of the first of the other models if there are any
    tokens: Whitening
    embedding: Whitening


@torch.inference_mode()
def read_pool(
    model: MaskedViT,
    source: EvalSource,
    device: torch.device,
    others: tuple[MaskedViT, ...] = (),
    pause: Callable[[], None] | None = None,
    whitening: tuple[Whitening, Whitening] | None = None,
) -> Pool:
    """Runs the model, and `others` for their probabilities only, on every image once. Does not change the state of
    torch's random generator. `pause`: called before every batch; it may raise to stop. `whitening`: as of
    `fit_whitening`, where several processes read parts of one pool.
    Raises ValueError: none of the images can be decoded."""
    model = model.to(device).eval()
    others = tuple(other.to(device).eval() for other in others)
    if whitening is None and len(source.numbers) > KEPT_FLAT:
        whitening = fit_whitening(model, source, device, pause)
    numbers, sources, flats, features = list[Tensor](), list[str](), list[Tensor](), list[Tensor]()
    probabilities, other_probabilities, fits = list[Tensor](), list[Tensor](), list[Tensor]()
    with torch.random.fork_rng(devices=[]):  # loaders draw a seed from it
        for batch in watched(source, "predictions"):
            if pause is not None:
                pause()
            images = normalize(batch.pixels.to(device), source.preprocess)
            logits, feature, tokens = model.classify(images)
            flat = flatten_tokens(model.tower, tokens)
            if whitening is not None:
                features.append(join_vectors(whitening[0](flat), whitening[1](feature.float())).half().cpu())
            else:
                flats.append(flat.half().cpu())
                features.append(feature.float().cpu())
            numbers.append(batch.samples)
            sources += batch.sources
            probabilities.append(logits.float().softmax(-1).half().cpu())
            of_others = [other(images).float() for other in others]
            fits.append((of_others[0] if others else logits.float()).amax(-1).cpu())
            if others:
                other_probabilities.append(torch.stack(of_others).softmax(-1).half().cpu())
    require(bool(numbers), "none of the split's images can be decoded; check them: must index verify")
    joined = torch.cat(features)
    if whitening is None:
        flat = torch.cat(flats)
        whitening = Whitening.fit(flat), Whitening.fit(joined)
        joined = join_vectors(whitening[0](flat), whitening[1](joined)).half()
    P = torch.cat(probabilities)
    Q = torch.cat(other_probabilities, 1) if others else P.new_zeros(0, *P.shape)
    parts = whitening[0].cpu(), whitening[1].cpu()
    return Pool(torch.cat(numbers), sources, joined, P, Q, torch.cat(fits), *parts)


@torch.inference_mode()
def fit_whitening(
    model: MaskedViT, source: EvalSource, device: torch.device, pause: Callable[[], None] | None = None
) -> tuple[Whitening, Whitening]:
    """The whitenings of tokens and embedding, from at most FITTED of the source's images, at even intervals."""
    numbers, images = source.numbers, len(source.numbers)
    count = min(images, FITTED)
    flats, features = list[Tensor](), list[Tensor]()
    model = model.to(device).eval()
    try:
        source.numbers = [numbers[n * images // count] for n in range(count)]
        with torch.random.fork_rng(devices=[]):
            for batch in watched(source, "features"):
                if pause is not None:
                    pause()
                _, feature, tokens = model.classify(normalize(batch.pixels.to(device), source.preprocess))
                flats.append(flatten_tokens(model.tower, tokens).half().cpu())
                features.append(feature.float().cpu())
    finally:
        source.numbers = numbers
    require(bool(flats), "none of the split's images can be decoded; check them: must index verify")
    return Whitening.fit(torch.cat(flats)).to(device), Whitening.fit(torch.cat(features)).to(device)


def join_pools(parts: Sequence[Pool]) -> Pool:
    """The parts of a pool, which were read with one whitening, in the order of the images' numbers."""
    numbers = torch.cat([part.numbers for part in parts])
    order = numbers.argsort()
    sources = [source for part in parts for source in part.sources]
    return Pool(
        numbers[order],
        [sources[index] for index in order.tolist()],
        torch.cat([part.vectors for part in parts])[order],
        torch.cat([part.probabilities for part in parts])[order],
        torch.cat([part.others for part in parts], 1)[:, order],
        torch.cat([part.fit for part in parts])[order],
        parts[0].tokens,
        parts[0].embedding,
    )


def subsample(source: EvalSource, limit: int) -> EvalSource:
    """Limits the source to `limit` images of the split, evenly spread; a process keeps its share of them."""
    images = len(source)
    if images > limit:
        source.numbers = [n for n in source.numbers if n * limit // images > (n - 1) * limit // images]
    return source
