"""`--pseudo-labels propagated`: labels corrected by similar images, computed anew in each step.

It is label propagation with the neighbours' mean; `must refine` uses naive Bayes (must/method/memory/propagate.py),
which is worse in training (docs/measured.md). For an image i, with the mean P_i of the zero-shot model's and the
teacher's probabilities:

    Z_i = P_i L_i, scaled to sum 1;    L_i = (mean of Z_j over the neighbours j) / (mean of Z over all images)

The neighbours are those of the frozen zero-shot tower. Z starts as the propagated labels of the zero-shot model; a step
replaces it for the images of its batch. The largest TOP values of each Z are stored. N images, K classes, C neighbours,
T values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_map

from must.data.loader import EvalSource
from must.method.distributed import World
from must.method.memory.features import read_features
from must.method.memory.propagate import RARE, ROUNDS
from must.method.model.masked_vit import MaskedViT
from must.method.model.memory import NEIGHBOURS, SMALLEST_PROBABILITY, nearest, neighbour_weights

TOP = 16
IMAGES_AT_ONCE = 4096


@dataclass
class PropagatedLabels:
    """Z of all images, and the tensors to update it. Rows of zeros: undecodable images."""

    neighbours: Tensor  # int64 [N, C], numbers in the split
    weights: Tensor  # [N, C], rows of sum 1
    zero_shot: tuple[Tensor, Tensor]  # the largest probabilities, [N, T], after their classes, int64 [N, T]
    classes: Tensor  # int64 [N, T]
    values: Tensor  # [N, T], the largest values of Z
    total: Tensor  # [K], the sum of Z over all images
    images: int  # number of decodable images

    @classmethod
    def compute(cls, zero_shot: MaskedViT, source: EvalSource, world: World, folder: str = "") -> tuple[Self, Tensor]:
        """(the zero-shot model's propagated labels, the largest Z of each decodable image).

        Every process calls this with a source of the full split, and gets the labels of all images. `folder`: as of
        `read_features`."""
        features = read_features(zero_shot, source, world, folder)
        P = features.probabilities(zero_shot)
        top = P.float().topk(min(TOP, P.shape[-1]))
        pictures = features.numbers.to(world.device)
        near, cosines = nearest(features.vectors.to(world.device).float())
        weights = neighbour_weights(cosines)
        numbers, rows = (torch.from_numpy(part).to(world.device) for part in features.find_rows())

        def scatter(values: Tensor) -> Tensor:
            """Rows of pictures -> rows of all images, with zeros for those that cannot be decoded."""
            scattered = values.new_zeros(len(source.reader), *values.shape[1:])
            scattered[numbers] = values[rows]
            return scattered

        first = scatter(top.indices.to(world.device)), scatter(top.values.to(world.device))
        total = torch.zeros(P.shape[-1], device=world.device)
        largest = first[0].clone(), first[1].clone()
        self = cls(scatter(pictures[near]), scatter(weights), first, *largest, total, len(numbers))
        self.total = self.sum_labels(numbers)
        for _ in range(ROUNDS):
            blocks = numbers.split(IMAGES_AT_ONCE)
            tops = [self(self.gather_zero_shot(block), block).topk(first[0].shape[1]) for block in blocks]
            self.values[numbers] = torch.cat([part.values for part in tops])
            self.classes[numbers] = torch.cat([part.indices for part in tops])
            self.total = self.sum_labels(numbers)
        return self, self.values[numbers, 0]

    def sum_labels(self, numbers: Tensor) -> Tensor:
        """[K]: the sum of the stored labels of images. In blocks: [N, K] would not fit into the memory of a GPU."""
        return torch.stack([self.dense(block).sum(0) for block in numbers.split(IMAGES_AT_ONCE)]).sum(0)

    def __call__(self, probabilities: Tensor, samples: Tensor) -> Tensor:
        """Z [B, K] of images with the teacher's `probabilities` [B, K]; `samples` int64 [B], numbers in the split."""
        near, weights = self.neighbours[samples], self.weights[samples]
        lift = torch.zeros_like(probabilities)
        # One neighbour at a time, so that sums are in the same order each time, on a GPU too.
        for neighbour, weight in zip(near.T, weights.T, strict=True):
            lift.scatter_add_(1, self.classes[neighbour], weight[:, None] * self.values[neighbour])
        lift = lift / (self.total / self.images + RARE)
        mean = (probabilities + self.gather_zero_shot(samples)) / 2
        Z = mean.clamp(min=SMALLEST_PROBABILITY) * lift.clamp(min=RARE)
        return Z / Z.sum(1, keepdim=True)

    def update(self, samples: Sequence[Tensor], labels: Sequence[Tensor], world: World) -> None:
        """Stores the Z of a step, of all processes: `samples` int64 [B] and `labels` [B, K] of each micro-batch.

        An image may be in the step twice, in place of one that cannot be decoded: then its first Z is stored."""
        top = torch.cat(list(labels)).topk(self.classes.shape[1])
        new = [torch.cat(list(samples)), top.indices, top.values]
        if world.size > 1:
            for number, part in enumerate(new):
                parts = [torch.empty_like(part) for _ in range(world.size)]
                dist.all_gather(parts, part.contiguous())
                new[number] = torch.cat(parts)
        numbers, classes, values = new
        first = (numbers[:, None] == numbers).int().argmax(1)  # place of the image's first Z
        once = first == torch.arange(len(first), device=first.device)
        classes, values = classes[first], values[first]
        self.total += ((self.spread(classes, values) - self.dense(numbers)) * once[:, None]).sum(0)
        self.classes[numbers], self.values[numbers] = classes, values

    def gather_zero_shot(self, numbers: Tensor) -> Tensor:
        """[B, K]: the zero-shot model's probabilities of images."""
        return self.spread(*(part[numbers] for part in self.zero_shot))

    def dense(self, numbers: Tensor) -> Tensor:
        """[B, K]: the stored labels of images."""
        return self.spread(self.classes[numbers], self.values[numbers])

    def spread(self, classes: Tensor, values: Tensor) -> Tensor:
        """[B, K]: the values [B, T] at the classes [B, T], and zeros."""
        return torch.zeros(len(values), len(self.total), device=values.device).scatter_(1, classes, values)

    def state_dict(self) -> dict[str, Any]:
        return vars(self)

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> Self:
        """`state`: as of `state_dict`; its tensors are moved to the device."""
        return cls(**tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, state))


def count_bytes(images: int, classes: int) -> int:
    """Bytes of the state, in a checkpoint and on each device."""
    return images * 12 * (NEIGHBOURS + 2 * min(TOP, classes))  # int64 and float32
