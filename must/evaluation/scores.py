"""One pass over a split: what every model says about every image, small enough to keep for millions of images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from must.base.progress import bar
from must.data.augment.normalize import normalize
from must.data.loading.loader import EvalSource
from must.method.distributed.process_group import World
from must.method.model.masked_vit import MaskedViT

TOP = 5
NO_LABEL = -1


@dataclass
class Samples:
    """Which images were scored, in the split's order. N images."""

    numbers: np.ndarray  # int64 [N], numbers in the split
    labels: np.ndarray  # int64 [N], class numbers, NO_LABEL without a label
    sources: np.ndarray  # object [N], where each image came from
    skipped: int = 0  # images that could not be decoded

    @property
    def labelled(self) -> np.ndarray:
        """bool [N]"""
        return self.labels != NO_LABEL


@dataclass
class Scores:
    """What one model says. N images, K classes, T = min(5, K).

    Whole probability vectors are not kept (those of ImageNet's training images would take 5 GB): the five best are
    enough for every metric, and two sums are enough for the label-free ones.
    """

    top: np.ndarray  # int32 [N, T], the most probable classes, best first
    top_probability: np.ndarray  # float32 [N, T]
    label_log_probability: np.ndarray  # float32 [N], nan without a label
    entropy: np.ndarray  # float32 [N], nats
    probability_sum: np.ndarray  # float64 [K]
    gram: np.ndarray  # float64 [K, K], the sum of p p^T

    @property
    def prediction(self) -> np.ndarray:
        """int32 [N]"""
        return self.top[:, 0]

    @property
    def confidence(self) -> np.ndarray:
        """float32 [N]"""
        return self.top_probability[:, 0]


def score_split(
    models: Sequence[MaskedViT],
    source: EvalSource,
    classes: Sequence[str],
    world: World,
    use_labels: bool = True,
) -> tuple[Samples, list[Scores]]:
    """Runs models with the same preprocessing over this process's part of a split, then collects all parts.

    Every process returns everything, in the order of sample numbers.

    Raises:
        ValueError: a label that is no class, or no image at all that can be decoded.
    """
    lookup = {name: number for number, name in enumerate(classes)}
    samples = [Samples(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, object))]
    collectors = [Collector(len(classes)) for _ in models]
    problem = ""
    for model in models:
        model.to(world.device).eval()
    with (
        torch.inference_mode(),
        bar(total=len(source.numbers), unit="img", desc="evaluate", leave=False, quiet=not world.is_main) as shown,
    ):
        for batch in source:
            names = batch.labels if use_labels else [None] * len(batch.labels)
            try:
                labels = label_numbers(names, lookup, batch.sources)
            except ValueError as error:  # told after the collective, so that no other process waits for this one
                problem = str(error)
                break
            samples.append(Samples(batch.samples.numpy(), labels, np.array(batch.sources, dtype=object)))
            images = normalize(batch.pixels.to(world.device), source.preprocess)
            for model, collector in zip(models, collectors, strict=True):
                collector.add(model(images), labels)
            shown.update(len(images))
    parts = world.gather((merge_samples(samples, source.skipped), [c.result() for c in collectors], problem))
    for _, _, said in parts:
        if said:
            raise ValueError(said)
    merged = merge_samples([part for part, _, _ in parts], sum(part.skipped for part, _, _ in parts))
    if not len(merged.numbers):
        raise ValueError(f"none of the split's {merged.skipped} images can be decoded; check them: must index verify")
    order = np.argsort(merged.numbers, kind="stable")
    merged = Samples(merged.numbers[order], merged.labels[order], merged.sources[order], merged.skipped)
    return merged, [merge_scores([scores[i] for _, scores, _ in parts], order) for i in range(len(models))]


class Collector:
    """Adds up one model's Scores, batch by batch."""

    def __init__(self, classes: int) -> None:
        k = min(TOP, classes)
        self.images: list[tuple[np.ndarray, ...]] = [
            (np.zeros((0, k), np.int32), np.zeros((0, k), np.float32), np.zeros(0, np.float32), np.zeros(0, np.float32))
        ]
        self.probability_sum = np.zeros(classes)
        self.gram = np.zeros((classes, classes))

    def add(self, logits: Tensor, labels: np.ndarray) -> None:
        """Logits [B, K] and class numbers [B] (NO_LABEL without)."""
        log_probability = logits.float().log_softmax(dim=-1)
        probability = log_probability.exp()
        values, top = probability.topk(min(TOP, logits.shape[1]), dim=-1)
        index = torch.from_numpy(labels).to(logits.device)
        of_label = log_probability.gather(1, index.clamp(min=0)[:, None])[:, 0]
        of_label = torch.where(index == NO_LABEL, torch.nan, of_label)
        entropy = -(probability * log_probability).sum(-1)
        self.images.append((top.int().cpu().numpy(), *(v.cpu().numpy() for v in (values, of_label, entropy))))
        exact = (probability.cpu() if probability.device.type == "mps" else probability).double()  # MPS has no float64
        self.probability_sum += exact.sum(0).cpu().numpy()
        self.gram += (exact.T @ exact).cpu().numpy()

    def result(self) -> Scores:
        top, values, of_label, entropy = (np.concatenate(arrays) for arrays in zip(*self.images, strict=True))
        return Scores(top, values, of_label, entropy, self.probability_sum, self.gram)


def label_numbers(labels: Sequence[str | None], lookup: dict[str, int], sources: Sequence[str]) -> np.ndarray:
    """Class numbers, int64 [B]. Raises ValueError, naming the label and the classes, for a label that is no class."""
    numbers = np.full(len(labels), NO_LABEL, dtype=np.int64)
    for i, label in enumerate(labels):
        if label is None:
            continue
        if label not in lookup:
            shown = ", ".join(list(lookup)[:20]) + (", ..." if len(lookup) > 20 else "")
            raise ValueError(
                f"{sources[i] or 'an image'}: its label '{label}' is none of the {len(lookup)} classes ({shown}); "
                "rename the label or the class, or evaluate without labels: --labels ignore"
            )
        numbers[i] = lookup[label]
    return numbers


def merge_samples(parts: list[Samples], skipped: int) -> Samples:
    return Samples(
        np.concatenate([part.numbers for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.sources for part in parts]),
        skipped,
    )


def merge_scores(parts: list[Scores], order: np.ndarray) -> Scores:
    """The processes' scores, joined and brought into the order of sample numbers."""
    return Scores(
        top=np.concatenate([part.top for part in parts])[order],
        top_probability=np.concatenate([part.top_probability for part in parts])[order],
        label_log_probability=np.concatenate([part.label_log_probability for part in parts])[order],
        entropy=np.concatenate([part.entropy for part in parts])[order],
        probability_sum=np.sum([part.probability_sum for part in parts], axis=0),
        gram=np.sum([part.gram for part in parts], axis=0),
    )
