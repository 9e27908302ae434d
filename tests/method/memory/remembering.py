"""A bundle with a memory of given images, without shards."""

from dataclasses import replace

import torch
from torch import Tensor

from must.method.memory.build import build_memory
from must.method.memory.pool import Pool
from must.method.memory.propagate import answer_rows
from must.method.model.bundle import Bundle
from must.method.model.vectors import Whitening, flatten_tokens, join_vectors


@torch.no_grad()
def remember(bundle: Bundle, images: Tensor, answers: dict[int, int]) -> Bundle:
    """`images`: [N, 3, S, S], normalised; `answers`: {row: class number, -1 for none of the classes}."""
    logits, feature, tokens = bundle.model.classify(images)
    flat = flatten_tokens(bundle.model.tower, tokens)
    parts = Whitening.fit(flat), Whitening.fit(feature)
    vectors, probability = join_vectors(parts[0](flat), parts[1](feature)).half(), logits.softmax(1).half()
    none = probability.new_zeros(0, *probability.shape)
    pool = Pool(torch.arange(len(images)), [""] * len(images), vectors, probability, none, logits.amax(1), *parts)
    memory, _ = build_memory(pool, answer_rows(answers, pool.numbers), torch.device("cpu"))
    return replace(bundle, memory=memory)
