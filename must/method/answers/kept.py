"""Labels that were accepted at an earlier look, and stay so: what is left is named once, and not found anew.

A test that is passed at one look says how many of the labels of that look are wrong (estimate.py); later answers do not
make more of them wrong. But they change labels and what is tested, and the same test may then fail, although all that a
person had to name was named. So the labels of the look that left the fewest pictures are kept beside the answers, in
accepted-RISK.npz, for the promise of the set. They count until a later look leaves fewer, or none, or `holds` says no.
So who names those that are left, in whatever order, is finished."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from must.base import storage
from must.method.answers.population import beside_answers

NAMES = ("contents", "labels", "confidence", "drawn", "answers", "pictures", "classes")


@dataclass(frozen=True, eq=False)
class KeptLabels:
    """Of S pictures whose labels were accepted, by A answers about pictures drawn at random. A picture is known by the
    first 8 bytes of its sha256."""

    risk: float
    pictures: int  # that there were in all
    contents: np.ndarray  # uint64 [S]
    labels: np.ndarray  # int64 [S], class numbers; -1 for none of the classes
    confidence: np.ndarray  # float32 [S]
    drawn: np.ndarray  # uint64 [A]
    answers: np.ndarray  # int64 [A], class numbers, or those of NO_CLASS and OUTDATED

    @property
    def allowed(self) -> int:
        """Wrong labels that the promise has room for."""
        return math.floor(self.risk * self.pictures + 1e-9)

    def holds(self, pictures: int, contents: np.ndarray, random: dict[int, int], answers: dict[int, int]) -> bool:
        """Whether nothing was taken back: the promise is about no fewer pictures, the answers that it rests on are as
        they were, and no more labels than it has room for were found to be wrong.

        Args:
            pictures: that there are in all.
            contents: uint64 [N], of the images that there are.
            random, answers: {content: class number}, of those drawn at random, and of all.
        """
        here = self.drawn[np.isin(self.drawn, contents)].tolist()
        before = dict(zip(self.drawn.tolist(), self.answers.tolist(), strict=True))
        accepted = zip(self.contents.tolist(), self.labels.tolist(), strict=True)
        wrong = sum(answers.get(one, label) != label for one, label in accepted)
        same = all(random.get(one) == before[one] for one in here)
        return same and wrong <= self.allowed <= math.floor(self.risk * pictures + 1e-9)


def kept_file(answers: str, risk: float) -> str:
    """`answers`: their folder, or their file."""
    return beside_answers(answers, f"accepted-{risk:g}.npz")


def read_kept(answers: str, risk: float, classes: Sequence[str]) -> KeptLabels | None:
    """None: there are none, the file is damaged, or the labels are of other classes."""
    try:
        data = storage.read_bytes(kept_file(answers, risk))
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            *arrays, pictures, names = (file[name] for name in NAMES)
        return KeptLabels(risk, int(pictures), *arrays) if names.tolist() == list(classes) else None
    except Exception:  # numpy has no common class for errors in a file
        return None


def write_kept(answers: str, kept: KeptLabels, classes: Sequence[str]) -> None:
    buffer, values = io.BytesIO(), {name: getattr(kept, name) for name in NAMES[:-1]}
    np.savez(buffer, **values, classes=np.array(classes))
    storage.write_bytes(kept_file(answers, kept.risk), buffer.getvalue())
