"""Refined labels of the unlabeled images: the model's probabilities, corrected by answers, then propagated.

N images in G groups of near copies, K classes, C neighbours per group, A images with a person's answer.

Near copies are no independent witnesses, so that a group is what one image would be: its P is the mean of its images',
its vector the one of its first image. Label propagation, from the probabilities P [G, K] and a group's nearest
neighbours j with weights w_j of sum 1, ten times:

    Z_i <- P_i times the product over j of (1 - r + r Z_j / M) ^ (VOTES w_j), scaled to sum 1;    M = mean of all Z

This is naive Bayes, where a neighbour has the image's class with probability r and else is any image; VOTES of them
count as independent. r is how often neighbours have the same most probable class in P, beyond chance, so that
neighbours unrelated to the classes change nothing.

Answers are used first: the errors of P on the answered images predict its errors on similar images, by kernel ridge
regression of (answer - P) on the features and on P. Correcting and then smoothing is Huang et al. 2021
(arXiv 2010.13993).

An answered image is a group of its own. Where it was the first of others, these are labelled as new images, by their
own P and the votes of the first one and its neighbours.

Where some answers are "none of the classes", this is a class of its own, the last column. Its value in P is their share
of the answers, a tenth at most, and its correction has a ridge of its own.

Makes a memory (must/model/memory.py) of the unlabeled images: their vectors and refined labels. M images are
kept, with C columns (K, or one more if answers say "none of the classes"), V numbers a vector, S labels of each.

Training has a propagation of its own (`--pseudo-labels propagated`, `PropagatedLabels`), with the neighbours' mean,
computed anew in each step: naive Bayes is worse there. For an image i, with the mean P_i of the
zero-shot model's and the teacher's probabilities:

    Z_i = P_i L_i, scaled to sum 1;    L_i = (mean of Z_j over the neighbours j) / (mean of Z over all images)

The neighbours are those of the frozen zero-shot tower. Z starts as the propagated labels of the zero-shot model; a step
replaces it for the images of its batch. The largest TOP values of each Z are stored, T of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from must.data.loader import EvalSource
from must.memory.features import Pool, read_features
from must.memory.predictions import TopLabels
from must.model.description import MemoryFacts
from must.model.distributed import World
from must.model.masked_vit import MaskedViT
from must.model.memory import (
    NEIGHBOURS,
    SMALLEST_PROBABILITY,
    Memory,
    Neighbours,
    apply_correction,
    find_nearest,
    find_nearest_groups,
    normalize_probabilities,
    separate,
    weigh_neighbours,
)

ROUNDS = 10
VOTES = 2.0  # number of an image's neighbours that count as independent
RARE = 1e-3  # added to a class's mean, so that the lift of an absent class is finite; and the smallest lift
MOST_NONE = 0.1  # value of none of the classes before the correction, at most
RIDGES = (1.0, 3.0, 10.0, 30.0, 100.0)


class Propagated(NamedTuple):
    labels: Tensor  # Z, float32 [N, C], rows of sum 1; C: the K classes, and none of them if answers say so
    shared: float  # r


class Corrected(NamedTuple):
    """`labels`: of the images, float32 [N, C]; `near`: of the groups, those of the answered images among them; `rows`:
    Z of the groups, float32 [G, C]; `shared`: r; `correction`: of `fit_correction`; `none`: the value of none of the
    classes in P, 0 where C is K."""

    labels: Tensor
    near: Neighbours
    rows: Tensor
    shared: float
    correction: Tensor
    none: float


def refine_probabilities(near: Neighbours, probabilities: Tensor, values: Tensor, answers: Tensor) -> Corrected:
    """The probabilities [N, K], corrected by answers, then propagated. `near`: of `find_nearest_groups`;
    `answers`: int64 [2, A], the rows of answered images and their classes."""
    P, (answered, labels) = probabilities.float(), answers.to(probabilities.device)
    none = min(MOST_NONE, float((labels < 0).sum()) / max(1, len(labels)))
    correction = fit_correction(P, values, answered, labels, none)
    labels = labels.where(labels >= 0, P.shape[1])
    near = separate(near, values, answered)
    mean = torch.zeros(len(near.first), P.shape[1], device=P.device).index_add_(0, near.groups, P)
    mean = apply_correction(mean / near.groups.bincount()[:, None], values[near.first], correction, none)
    Z, shared = propagate(near.numbers, near.cosines, mean, near.groups[answered], labels)
    refined, others = Z[near.groups], torch.isin(near.groups, near.groups[answered])
    others[answered] = False
    rows, groups = others.nonzero().flatten(), near.groups[others]
    cosines = torch.cat([(values[rows] * values[near.first[groups]]).sum(1)[:, None], near.cosines[groups][:, :-1]], 1)
    refined[rows] = add_votes(
        apply_correction(P[rows], values[rows], correction, none),
        torch.cat([groups[:, None], near.numbers[groups][:, :-1]], 1),
        weigh_neighbours(cosines),
        Z,
        shared,
    )
    return Corrected(refined, near, Z, shared, correction, none)


def propagate(
    neighbours: Tensor,
    cosines: Tensor,
    probabilities: Tensor,
    answered: Tensor | None = None,
    labels: Tensor | None = None,
) -> Propagated:
    """Answered images keep their class: no vote changes a probability of 1.

    Args:
        neighbours: int64 [N, C], and their `cosines` [N, C], as of `find_nearest`.
        probabilities: [N, K], corrected if there are answers.
        answered: int64 [A], and `labels`, int64 [A], the class numbers.
    """
    P = normalize_probabilities(probabilities.float())
    if answered is not None and labels is not None:
        P[answered] = encode_one_hot(labels, P.shape[1])
    weights = weigh_neighbours(cosines)
    shared, Z = measure_sharing(neighbours, weights, P.argmax(1)), P
    for _ in range(ROUNDS if neighbours.shape[1] else 0):
        Z = add_votes(P, neighbours, weights, Z, shared)
    return Propagated(Z, shared)


def add_votes(probabilities: Tensor, neighbours: Tensor, weights: Tensor, labels: Tensor, shared: float) -> Tensor:
    """Float32 [B, C]: the probabilities [B, C] times the votes of the neighbours [B, C] with `weights` [B, C], whose
    numbers are rows of the labels Z [N, C]; rows of sum 1."""
    mean, updated = labels.mean(0) + RARE, torch.empty_like(probabilities)
    size = max(1, BLOCK_NUMBERS // len(labels))
    for start in range(0, labels.shape[1], size):
        block = slice(start, start + size)
        lift = log_lift(labels[:, block], shared, mean[block])
        votes = F.embedding_bag(neighbours, lift, mode="sum", per_sample_weights=VOTES * weights)
        torch.mul(probabilities[:, block], votes.exp_(), out=updated[:, block])
    return updated.div_(updated.sum(1, keepdim=True).clamp(min=1e-12))


def log_lift(labels: Tensor, shared: float, mean: Tensor) -> Tensor:
    """log(1 - r + r Z / M) of labels Z [..., K] and their mean M [K]: what one neighbour says of each class."""
    return (shared * labels).div_(mean).add_(1 - shared).clamp_(min=RARE).log_()


def measure_sharing(neighbours: Tensor, weights: Tensor, labels: Tensor) -> float:
    """How often an image and its neighbours [N, C], with `weights` [N, C], have the same of the `labels` [N], beyond
    chance: 0 for as often as two random images, 1 for always."""
    same = float((weights * (labels[neighbours] == labels[:, None])).sum(1).mean())
    chance = float((labels.bincount() / len(labels)).square().sum())
    return max(0.0, same - chance) / max(1 - chance, RARE)


def fit_correction(
    probabilities: Tensor, values: Tensor, answered: Tensor, labels: Tensor, none: float = 0.0
) -> Tensor:
    """Float32 [K + V, C]: what [P, values] is multiplied with to predict the errors of P; [0, C] where that has no
    smaller error than P itself, as with few answers and many classes.

    The ridge is the one of RIDGES with the smallest leave-one-out error on the answers, for the K classes together and
    for none of them.

    Args:
        probabilities: [N, K].
        values: float32 [N, V], unit vectors.
        answered: int64 [A], and `labels`, int64 [A]; -1 where an image shows none of the classes.
        none: what it has in P; C is K + 1 if it is not 0.
    """
    P = probabilities.float()[answered]
    known, errors = torch.cat([P, values[answered].float()], 1), encode_one_hot(labels, P.shape[1]) - P
    parts = [errors, *([(labels < 0).float()[:, None] - none] if none else [])]
    smallest = [float(part.square().sum()) for part in parts]
    changes = [known.new_zeros(known.shape[1], part.shape[1]) for part in parts]
    for ridge in RIDGES if len(answered) else ():
        inverse = torch.linalg.inv(known @ known.T + ridge * torch.eye(len(known), device=known.device))
        for number, part in enumerate(parts):
            weights = inverse @ part
            left_out = float((weights / inverse.diagonal()[:, None]).square().sum())
            if left_out < smallest[number]:
                smallest[number], changes[number] = left_out, known.T @ weights
    correction = torch.cat(changes, 1)
    return correction if bool(correction.any()) else correction[:0]


def encode_one_hot(labels: Tensor, classes: int) -> Tensor:
    """Float32 [A, K]; a row of zeros for a number that is none of them."""
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()


BLOCK_NUMBERS = 1 << 25  # numbers of a block of classes, of all images
LARGEST_MEMORY = 10_000  # images, at even intervals
LABELS_KEPT = 5
# Quantiles of the memory's own cosines: votes count nothing below the first, fully above the second.
FADE = 0.01, 0.25
FEW_IMAGES = 5.0  # a class of n images gets n / (n + FEW_IMAGES) of its votes
HELD = 10, 0.5  # a class is held by n / HELD[0] with n images, or by n / HELD[1] of a class's mean if that is more
# A class of which P expects so many answers, but none came, is not held; "none of the classes" counts as that which the
# model takes the image for, so that others like it are found.
EXPECTED = 3.0


NO_ANSWERS = torch.zeros(2, 0, dtype=torch.int64)


def build_memory(
    pool: Pool,
    answers: Tensor,
    device: torch.device,
    limit: int = LARGEST_MEMORY,
    near: Neighbours | None = None,
) -> tuple[Memory, Tensor]:
    """(the memory on the CPU, the refined labels of all images on the CPU, float32 [N, K]: what a row lacks of 1 is the
    probability of none of the classes). `answers`: int64 [2, A], rows and classes; `limit`: groups that are kept; the
    others only take part in the propagation; `near`: of `find_neighbours`, where several memories are made."""
    values, P, answers = normalize_vectors(pool, device), pool.probabilities.to(device).float(), answers.to(device)
    near = near or find_nearest_groups(values, P.argmax(1))
    even = torch.linspace(0, len(near.first) - 1, min(len(near.first), limit), device=device).round().long()
    cosines = near.cosines if len(even) == len(near.first) else find_nearest(values[near.first[even]])[1]
    labels, near, Z, shared, correction, none = refine_probabilities(near, P, values, answers)
    C, rows = Z.shape[1], torch.cat([even, near.groups[answers[0]]]).unique()
    counts, mean = Z.sum(0), Z.mean(0) + RARE
    held = (counts[: P.shape[1]] / min(HELD[0], HELD[1] * len(Z) / P.shape[1])).clamp(max=1)
    asked = P[answers[0]]
    came = encode_one_hot(answers[1].where(answers[1] >= 0, asked.argmax(1)), P.shape[1]).sum(0)
    held[(asked.sum(0) >= EXPECTED) & (came == 0)] = 0
    label, classes = Z[rows].topk(min(LABELS_KEPT, C), dim=1)
    lift = log_lift(label, shared, mean[classes]) - math.log(max(1 - shared, RARE))
    buffers = {
        "vectors": values[near.first[rows]].half(),
        "classes": classes.int(),
        "lifts": (VOTES * lift.clamp(min=0) * (counts / (counts + FEW_IMAGES))[classes]).half(),
        "fade": measure_fade(cosines),
        "held": held,
        "correction": correction.half(),
        "answered": torch.zeros(0, dtype=torch.int64),  # set by `must refine`
    }
    facts = MemoryFacts(images=len(rows), answers=answers.shape[1], shared=round(shared, 4), none=none)
    return Memory(pool.tokens, pool.embedding, buffers, facts).cpu().eval(), labels[:, : P.shape[1]].cpu()


def find_neighbours(pool: Pool, device: torch.device) -> Neighbours:
    """As of `find_nearest_groups`."""
    return find_nearest_groups(normalize_vectors(pool, device), pool.probabilities.to(device).argmax(1))


def normalize_vectors(pool: Pool, device: torch.device) -> Tensor:
    """Unit vectors float32 [N, V]: half precision changes their length."""
    return F.normalize(pool.vectors.to(device).float(), dim=1)


@torch.inference_mode()
def look_up(memory: Memory, pool: Pool, rows: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
    """(probabilities [R, K], similarity [R]) of the pool's images `rows`, with the memory as if they were new ones."""
    probability, vectors = pool.probabilities[rows].float(), F.normalize(pool.vectors[rows].float(), dim=1)
    parts = [memory(*part) for part in zip(probability.split(1_024), vectors.split(1_024), strict=True)]
    return torch.cat([found for found, _ in parts]), torch.cat([similarity for _, similarity in parts])


def predict_left_out(memory: Memory, pool: Pool, rows: Tensor) -> TopLabels:
    """The classes of `look_up`."""
    return TopLabels.from_probabilities(look_up(memory, pool, rows)[0])


def measure_fade(cosines: Tensor) -> Tensor:
    """Float32 [2]: the FADE quantiles of the weighted mean cosine of images with their neighbours, `cosines` [M, C].
    Where there is only one image nothing is known of others: votes count nothing."""
    if not cosines.shape[1]:
        return torch.tensor([1.0, 2.0])
    distances = (weigh_neighbours(cosines) * cosines).sum(1)
    low, high = (float(distances.kthvalue(max(1, round(share * len(distances)))).values) for share in FADE)
    return torch.tensor([low, max(high, low + 1e-6)])


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
        near, cosines = find_nearest(features.vectors.to(world.device).float())
        weights = weigh_neighbours(cosines)
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
