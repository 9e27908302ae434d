"""A model's predictions for every image of a split, small enough to keep for millions of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from must.base.errors import UserError
from must.data.reader import ShardReader
from must.method.memory.features import Features
from must.method.model.masked_vit import MaskedViT
from must.method.model.memory import Memory

AT_ONCE = 1_024  # images that a memory is asked about at a time
TOP_K = 5
NO_LABEL = -1


@dataclass
class Samples:
    """Which images were scored, in the split's order. N images."""

    numbers: np.ndarray  # int64 [N], numbers in the split
    labels: np.ndarray  # int64 [N], class numbers, NO_LABEL without a label
    sources: np.ndarray  # object [N], where each image came from
    skipped: int = 0  # images that could not be decoded
    answered: np.ndarray | None = None  # bool [N], images whose answers are in a model: their labels measure nothing

    def only(self, numbers: np.ndarray) -> Samples:
        """Those that could be decoded."""
        skipped = len(self.numbers) - len(numbers)
        return Samples(self.numbers[numbers], self.labels[numbers], self.sources[numbers], skipped)

    @property
    def labelled(self) -> np.ndarray:
        """bool [N], the images that accuracies are measured on"""
        labelled = self.labels != NO_LABEL
        return labelled if self.answered is None else labelled & ~self.answered


@dataclass
class Scores:
    """One model's predictions. N images, K classes, T = min(5, K).

    Full probability vectors are not kept (for ImageNet's training images they would take 5 GB): the five best are
    enough for the metrics."""

    top: np.ndarray  # int32 [N, T], the most probable classes, best first
    top_probability: np.ndarray  # float32 [N, T]
    label_log_probability: np.ndarray  # float32 [N], nan without a label
    similarity: np.ndarray  # float32 [N], to the images that the model remembers; nan without a memory
    named: np.ndarray  # bool [N], where a class is more probable than none of the classes

    @property
    def prediction(self) -> np.ndarray:
        """int32 [N]"""
        return self.top[:, 0]

    @property
    def confidence(self) -> np.ndarray:
        """float32 [N]"""
        return self.top_probability[:, 0]


def read_samples(reader: ShardReader, classes: Sequence[str], use_labels: bool = True) -> Samples:
    """All images of the split, with their labels. Raises UserError: a label is no class."""
    lookup = {name: number for number, name in enumerate(classes)}
    descriptions = [reader.description(number) for number in range(len(reader))]
    sources = [description.get("source", "") for description in descriptions]
    labels = label_numbers([one.get("label") if use_labels else None for one in descriptions], lookup, sources)
    return Samples(np.arange(len(labels)), labels, np.array(sources, dtype=object))


@torch.inference_mode()
def score(
    model: MaskedViT, memory: Memory | None, features: Features, labels: np.ndarray, device: torch.device
) -> Scores:
    """The predictions of a model, with its memory if it has one, for the images of `find_rows` with these labels, int64
    [N]. The features are of its tower; their vectors are of its memory's whitenings."""
    memory = memory.to(device).eval() if memory else None
    rows = features.find_rows()[1]
    columns = list[tuple[np.ndarray, ...]]()
    for start in range(0, len(rows), AT_ONCE):
        block = torch.from_numpy(rows[start : start + AT_ONCE])
        output = features.logits(model, block, device).log_softmax(-1)
        similarity = torch.full((len(block),), torch.nan)
        if memory:
            vectors = F.normalize(features.vectors[block].to(device).float(), dim=1)
            probability, similarity = memory(output.exp(), vectors)
            output = probability.log()
        columns.append(score_batch(output, similarity, labels[start : start + AT_ONCE]))
    return Scores(*concatenate(columns))


def score_batch(log_probability: Tensor, similarity: Tensor, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """A batch's values of the fields of Scores. Log probabilities [B, K], similarity [B], class numbers [B] or
    NO_LABEL."""
    probability = log_probability.exp()
    values, top = probability.topk(min(TOP_K, probability.shape[1]), dim=-1)
    index = torch.from_numpy(labels).to(probability.device)
    of_label = log_probability.gather(1, index.clamp(min=0)[:, None])[:, 0]
    of_label = torch.where(index == NO_LABEL, torch.nan, of_label)
    named = 1 - probability.sum(-1) <= values[:, 0]
    fields = (top.int(), values, of_label, similarity, named)
    return tuple(field.cpu().numpy() for field in fields)


def label_numbers(labels: Sequence[str | None], lookup: dict[str, int], sources: Sequence[str]) -> np.ndarray:
    """Class numbers, int64 [B]."""
    for label, source in zip(labels, sources, strict=True):
        if label is not None and label not in lookup:
            known = ", ".join(list(lookup)[:20]) + (", ..." if len(lookup) > 20 else "")
            raise UserError(
                f"{source or 'an image'}: its label '{label}' is none of the {len(lookup)} classes ({known}); "
                "rename the label or the class, or evaluate without labels: --labels ignore"
            )
    return np.array([NO_LABEL if label is None else lookup[label] for label in labels], dtype=np.int64)


def concatenate(batches: Sequence[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    """The batches' arrays, each concatenated over the batches."""
    return [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]
