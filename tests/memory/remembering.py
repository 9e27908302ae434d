"""A bundle with a memory of given images, without shards; and shards of the digits that have no labels."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from must.api.demo import load_digits
from must.config import ShardConfig
from must.data.shards.build import shard
from must.memory.features import Pool
from must.memory.propagate import build_memory
from must.model.bundle import Bundle
from must.model.memory import Whitening, flatten_tokens, join_vectors


def pair(answers: dict[int, int]) -> Tensor:
    """Int64 [2, A]: rows and class numbers."""
    return torch.tensor([*answers.items()], dtype=torch.int64).reshape(-1, 2).T


@torch.no_grad()
def remember(bundle: Bundle, images: Tensor, answers: dict[int, int]) -> Bundle:
    """`images`: [N, 3, S, S], normalised; `answers`: {row: class number, -1 for none of the classes}."""
    logits, feature, tokens = bundle.model.classify(images)
    flat = flatten_tokens(bundle.model.tower, tokens)
    parts = Whitening.fit(flat), Whitening.fit(feature)
    vectors, probability = join_vectors(parts[0](flat), parts[1](feature)).half(), logits.softmax(1).half()
    none = probability.new_zeros(0, *probability.shape)
    pool = Pool(torch.arange(len(images)), [""] * len(images), vectors, probability, none, *parts)
    memory, _ = build_memory(pool, pair(answers), torch.device("cpu"))
    return replace(bundle, memory=memory)


def unlabeled_digits(root: Path, count: int | None = None) -> tuple[str, dict[str, str]]:
    """(their shards, their classes by file name); the classes begin the names, too."""
    (root / "images").mkdir()
    classes = {}
    for number, (image, label) in enumerate(load_digits()["unlabeled"][:count]):
        image.save(root / "images" / f"{label}-{number:04d}.png")
        classes[f"{label}-{number:04d}.png"] = label
    shard(ShardConfig(source=str(root / "images"), output=str(root / "shards"), workers=1))
    return str(root / "shards"), classes
