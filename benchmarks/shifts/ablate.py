"""What each part of the ladder is worth: the suite's runs decided again without it, nothing trained.

    python -m benchmarks.shifts.ablate

A line a variant of the rule: runs below zero-shot by more than a point, the least change, the sum of all changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.shifts.evidence import Kept, kept_looks
from benchmarks.shifts.packages import ROOT
from benchmarks.shifts.run import top1
from must.method.select import ladder
from must.method.select.choose import RENAMED
from must.method.select.ladder import RUNGS, Climb, climb
from must.method.select.neighbours import look_alikes
from must.method.select.signal import renamed

Rule = Callable[[np.ndarray, np.ndarray, np.ndarray, bool], float]


def kept_by(limits: dict[str, object], rungs: int = 10, one_judge: bool = False, lift: bool = True) -> Rule:
    """The ladder with other constants, fewer rungs, zero-shot as the judge of all, or plain belief instead of lift."""

    def rule(said: np.ndarray, labels: np.ndarray, neighbours: np.ndarray, strict: bool) -> float:
        chosen = [0, *range(10 // rungs, 11, 10 // rungs)]
        judged = said[chosen]
        if one_judge:
            judged = np.broadcast_to(judged[0], judged.shape)
        changes: dict[str, Any] = (
            dict(limits) if lift else limits | {"RARE": 1e6}
        )  # so large that every class is as usual as any other
        with patch.multiple(ladder, RUNGS=RUNGS, **changes):  # at least one must be given
            found: Climb = climb(judged, labels[chosen], neighbours, [0.1 * r for r in chosen[1:]], strict=strict)
        return found.alpha

    return rule


def fixed(standard_errors: float) -> dict[str, object]:
    return {"NEEDED": (standard_errors, standard_errors), "IGNORANT": -1.0}


RULES: dict[str, tuple[Rule, int]] = {  # and the number of look-alikes, 0 for the default
    "as it is": (kept_by({}), 0),
    "all of the adaptation": (lambda *_: 1.0, 0),
    "2 standard errors whatever look-alikes know": (kept_by(fixed(2.0)), 0),
    "4": (kept_by(fixed(4.0)), 0),
    "1": (kept_by(fixed(1.0)), 0),
    "3 at most": (kept_by({"NEEDED": (3.0, 1.0)}), 0),
    "asked of look-alikes that know nothing, too": (kept_by({"IGNORANT": -1.0}), 0),
    "the same in spite of few images": (kept_by({"needed_of": lambda a, _, s=False: ladder_needs(a, s)}), 0),
    "belief instead of lift": (kept_by({}, lift=False), 0),
    "zero-shot judges every rung": (kept_by({}, one_judge=True), 0),
    "five rungs": (kept_by({}, rungs=5), 0),
    "10 look-alikes": (kept_by({}), 10),
    "40 look-alikes": (kept_by({}), 40),
}


def ladder_needs(agree: float, strict: bool) -> float | None:
    """`needed_of` of so many images that nothing is luck."""
    return NEEDED_OF(agree, 10**12, strict)


NEEDED_OF = ladder.needed_of


def main() -> None:
    folders = [path for path in sorted((ROOT / "runs").iterdir()) if list(path.glob("looks-*.npz"))]
    print(f"{'rule':<46}{'below':>6}{'least':>8}{'sum':>9}   of {len(folders)} runs")
    last = [kept_looks(folder)[-1] for folder in folders]
    for name, (rule, count) in RULES.items():
        changes = np.array([change(kept, rule, count) for kept in last])
        print(f"{name:<46}{(changes < -1).sum():>6}{changes.min():>+8.1f}{changes.sum():>+9.1f}", flush=True)


def change(kept: Kept, rule: Rule, count: int) -> float:
    neighbours, originals = look_alikes(kept["tokens"].astype(np.float32), count)
    said, labels = kept["probabilities"][:, originals], kept["labels"][:, originals]
    strict = renamed(labels[0], labels[-1], said.shape[-1]) > RENAMED
    alpha = round(rule(said, labels, neighbours, strict), 1)
    accuracy = [top1(each, kept["test_truth"], kept["counts"]) for each in kept["test"]]
    return accuracy[(0.0, *RUNGS).index(alpha)] - accuracy[0]


if __name__ == "__main__":
    main()
