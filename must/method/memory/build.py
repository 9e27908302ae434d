"""Makes a memory (must/method/model/memory.py) of the unlabeled images: their vectors and refined labels.

Shapes: N images of which M are kept, K classes, C columns (K, or one more if answers say "none of the classes"), V
numbers a vector, S labels kept of an image.
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
from must.method.model.vectors import nearest, neighbour_weights

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
    near: tuple[Tensor, Tensor] | None = None,
) -> tuple[Memory, Tensor]:
    """(the memory on the CPU, the refined labels of all images on the CPU, float32 [N, K]: what a row lacks of 1 is the
    probability of none of the classes). `answers`: of `answer_rows`; `limit`: images that are kept; the others only
    take part in the propagation; `near`: of `find_neighbours`, where several memories of one pool are made."""
    values, P = F.normalize(pool.vectors.to(device).float(), dim=1), pool.probabilities.to(device).float()
    neighbours, cosines = near or nearest(values)
    Z, shared, correction, none = refine_probabilities(neighbours, cosines, P, values, answers)
    C, rows = Z.shape[1], keep_rows(len(values), limit, answers[0].to(device))
    if len(rows) < len(values):
        _, cosines = nearest(values[rows])
    counts, mean = Z.sum(0), Z.mean(0) + RARE
    label, classes = Z[rows].topk(min(LABELS_KEPT, C), dim=1)
    lift = log_lift(label, shared, mean[classes]) - math.log(max(1 - shared, RARE))
    buffers = {
        "vectors": values[rows].half(),
        "classes": classes.int(),
        "lifts": (VOTES * lift.clamp(min=0) * (counts / (counts + FEW_IMAGES))[classes]).half(),
        "fade": measure_fade(cosines),
        "correction": correction.half(),
        "answered": torch.zeros(0, dtype=torch.int64),  # set by `must refine`
    }
    facts = MemoryFacts(images=len(rows), answers=answers.shape[1], shared=round(shared, 4), none=none)
    return Memory(pool.tokens, pool.embedding, buffers, facts).cpu().eval(), Z[:, : P.shape[1]].cpu()


def find_neighbours(pool: Pool, device: torch.device) -> tuple[Tensor, Tensor]:
    """(numbers, cosines) of each image's nearest ones, as of `nearest`."""
    return nearest(F.normalize(pool.vectors.to(device).float(), dim=1))


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
    """Float32 [2]: the FADE quantiles of the images' weighted mean cosine with their neighbours, `cosines` [N, C]."""
    distances = (neighbour_weights(cosines) * cosines).sum(1)
    low, high = (float(distances.kthvalue(max(1, round(share * len(distances)))).values) for share in FADE)
    return torch.tensor([low, max(high, low + 1e-6)])


def keep_rows(images: int, limit: int, answered: Tensor) -> Tensor:
    """Int64 [M], rising: `limit` of the images at even intervals, and the answered ones."""
    even = torch.linspace(0, images - 1, min(images, limit), device=answered.device).round().long()
    return torch.cat([even, answered]).unique()
