"""One pass over a split: every model's predictions for every image, small enough to keep for millions of images."""

from collections.abc import Iterator, Sequence
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
from must.method.model.memory import MemoryClassifier

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


def score_split(
    models: Sequence[MaskedViT | MemoryClassifier],
    source: EvalSource,
    classes: Sequence[str],
    world: World,
    use_labels: bool = True,
) -> tuple[Samples, list[Scores]]:
    """Runs models with the same preprocessing over this process's part of a split, then collects all parts.

    Every process returns the full result, in the order of sample numbers."""
    lookup = {name: number for number, name in enumerate(classes)}
    samples: list[tuple[np.ndarray, ...]] = []
    collected: list[list[tuple[np.ndarray, ...]]] = [[] for _ in models]
    problem = ""
    for model in models:
        model.to(world.device).eval()
    with (
        torch.inference_mode(),
        bar(total=len(source.numbers), unit="img", desc="evaluate", leave=False, quiet=not world.is_main) as progress,
    ):
        for batch in source:
            names = batch.labels if use_labels else [None] * len(batch.labels)
            try:
                labels = label_numbers(names, lookup, batch.sources)
            except ValueError as error:  # raised after the collective, so that no other process waits for this one
                problem = str(error)
                break
            samples.append((batch.samples.numpy(), labels, np.array(batch.sources, dtype=object)))
            images = normalize(batch.pixels.to(world.device), source.preprocess)
            for output, rows in zip(classify(models, images), collected, strict=True):
                rows.append(score_batch(*output, labels))
            progress.update(len(images))
    parts = world.gather((samples, collected, source.skipped, problem))
    for *_, error_text in parts:
        require(not error_text, error_text)
    skipped, batches = sum(part[2] for part in parts), [batch for part in parts for batch in part[0]]
    require(bool(batches), f"none of the split's {skipped} images can be decoded; check them: must index verify")
    numbers, labels, sources = concatenate(batches)
    order = np.argsort(numbers, kind="stable")
    scores = []
    for number in range(len(models)):
        columns = concatenate([batch for part in parts for batch in part[1][number]])
        scores.append(Scores(*(column[order] for column in columns)))
    return Samples(numbers[order], labels[order], sources[order], skipped), scores


def classify(models: Sequence[MaskedViT | MemoryClassifier], images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (log probabilities [B, K], similarity [B], nan without a memory) of each model. A network that is there
    with and without a memory runs once."""
    networks = {model.model for model in models if isinstance(model, MemoryClassifier)}
    outputs = {network: network.classify(images) for network in networks}
    for model in models:
        if isinstance(model, MemoryClassifier):
            probability, similarity = model.vote(*outputs[model.model])
            yield probability.log(), similarity
        else:
            logits = outputs[model][0] if model in outputs else model(images)
            yield logits.float().log_softmax(dim=-1), torch.full((len(images),), torch.nan)


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
