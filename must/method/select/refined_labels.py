"""Refined classes for the start of training: `must train --pseudo-labels refined`.

Zero-shot's classes, corrected by images that look alike (`label_propagation`), stand beside the teacher's while it is
still zero-shot's equal: pi = normalise(teacher^(1 - l) z^l), l from 0.5 to 0 over the first third of the steps.
"""

from __future__ import annotations

import io
import logging
import zipfile
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from must.base import storage
from must.base.text import printable

logger = logging.getLogger(__name__)

START, SHARE = 0.5, 1 / 3  # their weight at the first step, and the share of the steps over which it falls to 0
LEAST = 1e-6  # probability of a class that look-alikes rule out


class RefinedLabels(NamedTuple):
    """Of the N images that were looked at, of the split's; K classes."""

    numbers: Tensor  # int64 [N], ascending
    logs: Tensor  # float16 [N, K], log-probabilities

    @classmethod
    def of(cls, numbers: np.ndarray, probabilities: np.ndarray) -> RefinedLabels:
        logs = np.log(np.maximum(probabilities, LEAST)).astype(np.float16)
        return cls(torch.from_numpy(numbers), torch.from_numpy(logs))

    def to(self, device: torch.device) -> RefinedLabels:
        return RefinedLabels(self.numbers.to(device), self.logs.to(device))

    def mixed(self, logits: Tensor, samples: Tensor, share: float) -> Tensor:
        """The teacher's logits [B, K] as log-probabilities, with `share` of the refined ones of these samples [B].

        Samples that were not looked at keep the teacher's.
        """
        place = torch.searchsorted(self.numbers, samples).clamp(max=len(self.numbers) - 1)
        known = (self.numbers[place] == samples)[:, None]
        teacher = logits.float().log_softmax(-1)
        return torch.where(known, (1 - share) * teacher + share * self.logs[place].float(), teacher)

    def save(self, uri: str) -> None:
        """Training does not end for want of it."""
        file = io.BytesIO()
        np.savez(file, numbers=self.numbers.numpy(), logs=self.logs.numpy())
        try:
            storage.write_bytes(uri, file.getvalue())
        except (OSError, storage.UnreachableError) as error:
            logger.warning(f"warning: {printable(uri)} cannot be written: {printable(error, 200)}")

    @classmethod
    def load(cls, uri: str, classes: int) -> RefinedLabels | None:
        """What an earlier attempt of the run saved; None where there is nothing whole."""
        if not storage.exists(uri):
            return None
        try:
            with np.load(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False) as file:
                numbers, logs = file["numbers"], file["logs"]
            whole = numbers.dtype == np.int64 and logs.dtype == np.float16 and logs.shape == (len(numbers), classes)
            if whole and len(numbers) and (np.diff(numbers) > 0).all():
                return cls(torch.from_numpy(numbers), torch.from_numpy(logs))
        except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
            logger.warning(f"warning: {printable(uri)}: {printable(error, 100)}")
        return None


def share_at(step: int, steps: int) -> float:
    """The refined classes' weight at a step of so many."""
    return START * max(0.0, 1 - step / (SHARE * steps))
