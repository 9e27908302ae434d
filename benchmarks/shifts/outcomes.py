"""What every rung says of every image, run by run: enough to try a rule, or a person's answers, without training again.

from benchmarks.shifts.outcomes import outcomes
for run in outcomes():                            # the committed ones, benchmarks/shifts/outcomes.npz
    run.predictions, run.confidence, run.labels, run.classes, run.z

python -m benchmarks.shifts.outcomes              (adds build/shifts/runs, at most 400 images a run)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.shifts.packages import ROOT
from benchmarks.shifts.tasks import FITTED, JUDGING
from must.method.select.ladder import RUNGS, audit
from must.method.select.neighbours import look_alikes

PACKED = Path(__file__).with_name("outcomes.npz")
IMAGES = 400  # of a run
ALPHAS = np.array((0.0, *RUNGS))


@dataclass(frozen=True)
class Outcome:
    """R rungs, the first of them zero-shot; N of the unlabeled images; K classes."""

    task: str
    variant: str
    setting: str  # of training: auto, or auto-third
    seed: int
    classes: int  # K
    alphas: np.ndarray  # [R], 0 to 1
    predictions: np.ndarray  # int64 [R, N]
    confidence: np.ndarray  # float32 [R, N], of the class named
    labels: np.ndarray  # int64 [N], -1 where the image shows none of the classes; no rule may read them
    z: np.ndarray  # float64 [R], the ladder's z of each rung against zero-shot, of all unlabeled images; 0 at zero-shot
    test_change: np.ndarray  # float64 [R], points of top-1 against zero-shot, on test images that no choice saw

    @property
    def role(self) -> str:
        """`fitted` where rules may be fitted on it, `judging` where they are only judged, else `old`."""
        return "fitted" if self.task in FITTED else "judging" if self.task in JUDGING else "old"


def outcomes(path: Path = PACKED) -> Iterator[Outcome]:
    with np.load(path) as file:
        for name in file["runs"].tolist():
            task, variant, setting, _, seed = name.split(".")
            shares = file[f"{name}/confidence"].astype(np.float32) / 255
            yield Outcome(
                task, variant, setting, int(seed), int(file[f"{name}/classes"]), ALPHAS,
                file[f"{name}/predictions"].astype(np.int64), shares, file[f"{name}/labels"].astype(np.int64),
                file[f"{name}/z"], file[f"{name}/test_change"],
            )  # fmt: skip


def pack(path: Path = PACKED) -> None:
    with np.load(path) as file:
        packed = {name: file[name] for name in file.files if name != "runs"}
        names = file["runs"].tolist()
    for result in sorted((ROOT / "results").glob("*.json")):
        saved = sorted((ROOT / "runs" / result.stem).glob("looks-*.npz"))
        if not saved or result.stem in names:
            continue
        names.append(result.stem)
        looks = dict(np.load(saved[-1]))
        said, labels = looks["probabilities"].astype(np.float32), looks["labels"]
        neighbours, originals = look_alikes(looks["tokens"].astype(np.float32))
        said, labels, hidden = said[:, originals], labels[:, originals], looks["hidden"][originals]
        z = [0.0] + [audit(said[0], labels[0], rung, neighbours)[0] for rung in labels[1:]]
        accuracy = np.array(json.loads(result.read_text())["snapshots"][-1]["accuracy"])
        chosen = np.sort(np.random.default_rng(0).permutation(len(originals))[:IMAGES])
        sure = np.take_along_axis(said, labels[..., None], axis=-1)[..., 0]
        packed |= {
            f"{result.stem}/predictions": labels[:, chosen].astype(np.int16),
            f"{result.stem}/confidence": np.round(255 * sure[:, chosen]).astype(np.uint8),
            f"{result.stem}/labels": hidden[chosen].astype(np.int16),
            f"{result.stem}/classes": np.array(said.shape[-1]),
            f"{result.stem}/z": np.array(z),
            f"{result.stem}/test_change": accuracy - accuracy[0],
        }
    np.savez_compressed(path, allow_pickle=False, runs=np.array(names), **packed)
    print(f"{len(names)} runs, {path.stat().st_size:,} bytes -> {path}")


if __name__ == "__main__":
    pack()
