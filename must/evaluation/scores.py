"""One pass over a split: what every model says about every image, small enough to keep for millions of images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from must.base.errors import UserError
from must.base.parameters import require
from must.base.progress import bar
from must.data.augment.normalize import normalize
from must.data.loading.loader import EvalSource
from must.method.distributed.process_group import World
from must.method.model.masked_vit import MaskedViT

TOP_K = 5
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
class Seen:
    """Features of some of the images, by the baseline's tower."""

    rows: np.ndarray  # int64 [M], places in `Samples`
    values: np.ndarray  # float32 [M, D], unit vectors


@dataclass
class Scores:
    """What one model says. N images, K classes, T = min(5, K).

    Whole probability vectors are not kept (those of ImageNet's training images would take 5 GB): the five best are
    enough for every metric, and their sum is enough for the label-free ones.
    """

    top: np.ndarray  # int32 [N, T], the most probable classes, best first
    top_probability: np.ndarray  # float32 [N, T]
    label_log_probability: np.ndarray  # float32 [N], nan without a label
    entropy: np.ndarray  # float32 [N], nats
    probability_sum: np.ndarray  # float64 [K]

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
    Raises ValueError: a label that is no class, or no image at all that can be decoded.
    """
    lookup = {name: number for number, name in enumerate(classes)}
    samples: list[tuple[np.ndarray, ...]] = []
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
            samples.append((batch.samples.numpy(), labels, np.array(batch.sources, dtype=object)))
            images = normalize(batch.pixels.to(world.device), source.preprocess)
            for model, collector in zip(models, collectors, strict=True):
                collector.add(model(images), labels)
            shown.update(len(images))
    parts = world.gather((samples, collectors, source.skipped, problem))
    for *_, said in parts:
        require(not said, said)
    skipped, found = sum(part[2] for part in parts), [batch for part in parts for batch in part[0]]
    require(bool(found), f"none of the split's {skipped} images can be decoded; check them: must index verify")
    numbers, labels, sources = joined(found)
    order = np.argsort(numbers, kind="stable")
    scores = [merged([part[1][i] for part in parts], order) for i in range(len(models))]
    return Samples(numbers[order], labels[order], sources[order], skipped), scores


class Collector:
    """Adds up one model's Scores, batch by batch."""

    def __init__(self, classes: int) -> None:
        self.images: list[tuple[np.ndarray, ...]] = []
        self.probability_sum = np.zeros(classes)

    def add(self, logits: Tensor, labels: np.ndarray) -> None:
        """Logits [B, K] and class numbers [B] (NO_LABEL without)."""
        log_probability = logits.float().log_softmax(dim=-1)
        probability = log_probability.exp()
        values, top = probability.topk(min(TOP_K, logits.shape[1]), dim=-1)
        index = torch.from_numpy(labels).to(logits.device)
        of_label = log_probability.gather(1, index.clamp(min=0)[:, None])[:, 0]
        of_label = torch.where(index == NO_LABEL, torch.nan, of_label)
        entropy = -(probability * log_probability).sum(-1)
        self.images.append((top.int().cpu().numpy(), *(v.cpu().numpy() for v in (values, of_label, entropy))))
        exact = (probability.cpu() if probability.device.type == "mps" else probability).double()  # MPS has no float64
        self.probability_sum += exact.sum(0).cpu().numpy()

    def result(self) -> Scores:
        return merged([self])


def label_numbers(labels: Sequence[str | None], lookup: dict[str, int], sources: Sequence[str]) -> np.ndarray:
    """Class numbers, int64 [B]. Raises ValueError, naming the label and the classes, for a label that is no class."""
    numbers = np.full(len(labels), NO_LABEL, dtype=np.int64)
    for i, label in enumerate(labels):
        if label is None:
            continue
        if label not in lookup:
            shown = ", ".join(list(lookup)[:20]) + (", ..." if len(lookup) > 20 else "")
            raise UserError(
                f"{sources[i] or 'an image'}: its label '{label}' is none of the {len(lookup)} classes ({shown}); "
                "rename the label or the class, or evaluate without labels: --labels ignore"
            )
        numbers[i] = lookup[label]
    return numbers


def joined(batches: Sequence[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    """Each of their arrays as one."""
    return [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]


def merged(collectors: Sequence[Collector], order: np.ndarray | slice = slice(None)) -> Scores:
    """The processes' scores of one model, brought into the order of sample numbers."""
    images = joined([batch for collector in collectors for batch in collector.images])
    top, values, of_label, entropy = (array[order] for array in images)
    total = np.sum([one.probability_sum for one in collectors], axis=0)
    return Scores(top, values, of_label, entropy, total)
