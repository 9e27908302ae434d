"""Makes a memory (must/method/model/memory.py) of the unlabeled images: their vectors and refined labels.

Shapes: N images in G groups of near copies (vectors.py), of which M are kept, K classes, C columns (K, or one more if
answers say "none of the classes"), V numbers a vector, S labels kept of an image.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from must.method.memory.pool import Pool, Predicted
from must.method.memory.propagate import RARE, VOTES, log_lift, refine_probabilities
from must.method.model.description import MemoryFacts
from must.method.model.memory import Memory
from must.method.model.vectors import (
    SAME_PICTURE,
    Neighbours,
    find_groups,
    nearest,
    nearest_groups,
    neighbour_weights,
)

LARGEST_MEMORY = 10_000  # images, at even intervals
LABELS_KEPT = 5
# Quantiles of the memory's own cosines: votes count nothing below the first, fully above the second.
FADE = 0.01, 0.25
FEW_IMAGES = 5.0  # a class of n images gets n / (n + FEW_IMAGES) of its votes


def build_memory(
    pool: Pool,
    answers: Tensor,
    device: torch.device,
    limit: int = LARGEST_MEMORY,
    near: Neighbours | None = None,
) -> tuple[Memory, Tensor]:
    """(the memory on the CPU, the refined labels of all images on the CPU, float32 [N, K]: what a row lacks of 1 is the
    probability of none of the classes). `answers`: of `answer_rows`; `limit`: groups that are kept; the others only
    take part in the propagation; `near`: of `find_neighbours`, where several memories of one pool are made."""
    values, P, answers = normalized(pool, device), pool.probabilities.to(device).float(), answers.to(device)
    near = near or nearest_groups(values)
    even = torch.linspace(0, len(near.first) - 1, min(len(near.first), limit), device=device).round().long()
    cosines = near.cosines if len(even) == len(near.first) else nearest(values[near.first[even]])[1]
    labels, near, Z, shared, correction, none = refine_probabilities(near, P, values, answers)
    C, rows = Z.shape[1], torch.cat([even, near.groups[answers[0]]]).unique()
    counts, mean = Z.sum(0), Z.mean(0) + RARE
    label, classes = Z[rows].topk(min(LABELS_KEPT, C), dim=1)
    lift = log_lift(label, shared, mean[classes]) - math.log(max(1 - shared, RARE))
    buffers = {
        "vectors": values[near.first[rows]].half(),
        "classes": classes.int(),
        "lifts": (VOTES * lift.clamp(min=0) * (counts / (counts + FEW_IMAGES))[classes]).half(),
        "fade": measure_fade(cosines),
        "correction": correction.half(),
        "answered": torch.zeros(0, dtype=torch.int64),  # set by `must refine`
    }
    facts = MemoryFacts(images=len(rows), answers=answers.shape[1], shared=round(shared, 4), none=none)
    return Memory(pool.tokens, pool.embedding, buffers, facts).cpu().eval(), labels[:, : P.shape[1]].cpu()


def find_neighbours(pool: Pool, device: torch.device) -> Neighbours:
    """As of `nearest_groups`."""
    return nearest_groups(normalized(pool, device))


def find_copies(pool: Pool, device: torch.device) -> Tensor:
    """Int64 [N]: groups of images that are one picture, stored or scaled in several ways, as of `find_groups`."""
    return find_groups(normalized(pool, device), SAME_PICTURE).cpu()


def normalized(pool: Pool, device: torch.device) -> Tensor:
    """Unit vectors float32 [N, V]: half precision changes their length."""
    return F.normalize(pool.vectors.to(device).float(), dim=1)


@torch.inference_mode()
def predict_left_out(memory: Memory, pool: Pool, rows: Tensor) -> Predicted:
    """The model's classes with the memory of the pool's images `rows` [R], as if they were new ones."""
    probability, vectors = pool.probabilities[rows].float(), F.normalize(pool.vectors[rows].float(), dim=1)
    parts = zip(probability.split(1_024), vectors.split(1_024), strict=True)
    return Predicted.from_probabilities(torch.cat([memory(p, v)[0] for p, v in parts]))


@torch.inference_mode()
def find_similarity(memory: Memory, pool: Pool) -> Tensor:
    """Float32 [N]: of each picture of the pool to the others that the memory holds, 0 to 1."""
    values = F.normalize(pool.vectors.float(), dim=1)
    parts = zip(pool.probabilities.float().split(1_024), values.split(1_024), strict=True)
    return torch.cat([memory(probability, vectors)[1] for probability, vectors in parts])


def measure_fade(cosines: Tensor) -> Tensor:
    """Float32 [2]: the FADE quantiles of the weighted mean cosine of images with their neighbours, `cosines` [M, C].
    Where there is only one image nothing is known of others: votes count nothing."""
    if not cosines.shape[1]:
        return torch.tensor([1.0, 2.0])
    distances = (neighbour_weights(cosines) * cosines).sum(1)
    low, high = (float(distances.kthvalue(max(1, round(share * len(distances)))).values) for share in FADE)
    return torch.tensor([low, max(high, low + 1e-6)])
