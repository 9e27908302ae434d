"""How many answers of a person decide what is kept of an adaptation: replays them, from the labels, on recorded runs.

    python benchmarks/review.py build/shifts/runs/*/looks-*.npz [--draws 20]

Needs what `python -m benchmarks.shifts.run` records: zero-shot's and every rung's predictions for the unlabeled
images, and the hidden labels, which nothing but the simulated person reads. For each number of answers: the sum over
all runs of what the kept rung gains on the images that were looked at (points), the share of that which the best
rungs of all runs have, and how often a kept rung was a point worse than zero-shot. `chosen` draws pictures as `must
review` does, `random` evenly among those on which some rung differs; both with the same test.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from must.method.answers.judge import BETTER, NO_CLASS, judged
from must.method.answers.sampling import drawn, prior, weights
from must.method.select.ladder import audit
from must.method.select.neighbours import look_alikes

STOPS = (10, 20, 40, 80, 160, 320)


class Run(NamedTuple):
    """A candidates, zero-shot first; N images."""

    name: str
    labels: np.ndarray  # [A, N]
    likely: np.ndarray  # [A, N]
    z: np.ndarray  # [A - 1]
    truth: np.ndarray  # [N]
    gains: np.ndarray  # [A], points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--draws", type=int, default=20, help="orders of the pictures that are tried for each run")
    options = parser.parse_args()
    latest = {path.parent.name: path for path in sorted(options.files)}  # a run records more than one moment
    runs = [read(path) for path in latest.values()]
    print(f"{'run':<32}{'images':>7}{'pool':>7}{'full':>7}{'best':>7}   answers until a rung is better, until all is")
    found: dict[str, list[np.ndarray]] = {}
    for run in runs:
        said = {kind: [replay(run, kind, seed) for seed in range(options.draws)] for kind in ("random", "chosen")}
        for kind, results in said.items():
            found.setdefault(kind, []).append(np.array([result["kept"] for result in results]))
        pool = int((run.labels[1:] != run.labels[0]).any(axis=0).sum())
        until = "   ".join(
            f"{kind} {median([r['better'] for r in results])}, {median([r['settled'] for r in results])}"
            for kind, results in said.items()
        )
        line = f"{len(run.truth):>7}{pool:>7}{run.gains[-1]:>+7.1f}{run.gains.max():>+7.1f}"
        print(f"{run.name:<32}{line}   {until}", flush=True)
    best = sum(run.gains.max() for run in runs)
    print(f"\n{len(runs)} runs; the best rungs gain {best:+.1f} points in all, full adaptation "
          f"{sum(run.gains[-1] for run in runs):+.1f}")  # fmt: skip
    print(f"{'answers':>8}" + "".join(f"{kind + ': kept':>18}{'share':>7}{'worst':>7}{'harm':>7}" for kind in found))
    for column, stop in enumerate(STOPS):
        cells = ""
        for sums in found.values():
            kept = np.stack(sums)[:, :, column]  # [runs, draws]
            total = kept.sum(axis=0).mean()
            cells += f"{total:>+18.1f}{total / best:>7.0%}{kept.min():>+7.1f}{(kept < -1).mean():>7.2%}"
        print(f"{stop:>8}{cells}")


def read(path: Path) -> Run:
    looks = np.load(path)
    neighbours, originals = look_alikes(looks["tokens"].astype(np.float32))
    said, labels = looks["probabilities"].astype(np.float32)[:, originals], looks["labels"][:, originals]
    truth = looks["hidden"][originals]
    z = np.array([audit(said[0], labels[0], new, neighbours)[0] for new in labels[1:]])
    likely = np.take_along_axis(said.mean(axis=0), labels.T, axis=1).T
    right = (labels == truth).mean(axis=1)
    return Run(path.parent.name, labels, likely, z, np.where(truth < 0, NO_CLASS, truth), 100 * (right - right[0]))


def replay(run: Run, kind: str, seed: int) -> dict[str, Any]:
    """What is kept after each number of answers, and after how many something is decided; None: not within the pool."""
    differ = run.labels[:, None] != run.labels[None]
    promise = prior(run.z) if kind == "chosen" else np.full(len(run.z), 1 / len(run.z))
    if kind == "chosen":
        chances = weights(run.labels, run.likely, promise)
    else:
        chances = differ[0].any(axis=0) / differ[0].any(axis=0).sum()
    order = drawn(chances, seed)
    tables = np.where(differ, chances, 1.0).min(axis=-1), len(run.truth), differ.sum(axis=-1)
    kept, better, settled = [], None, None
    for stop in sorted({*STOPS, *range(10, min(len(order), max(STOPS)), 10)}):
        asked = order[:stop]
        answers = run.labels[:, asked], run.truth[asked], chances[asked]
        found = judged(*answers, promise, *tables, with_ends=False)
        if stop in STOPS:
            kept.append(run.gains[found.candidate])
        if better is None and found.outcome == BETTER:
            better = stop
        if settled is None and found.settled:
            settled = stop
    return {"kept": kept, "better": better, "settled": settled}


def median(counts: list[int | None]) -> str:
    """Of the draws; `-` where half of them or more never came to it."""
    middle = float(np.median([np.inf if count is None else count for count in counts]))
    return "-" if np.isinf(middle) else f"{middle:.0f}"


if __name__ == "__main__":
    main()
