"""What the ladder keeps of every run of the second panel, beside all of the adaptation and the best rung by labels.

    python -m benchmarks.shifts.judge          (seconds a run; reads what benchmarks/shifts/run.py has kept)

`before` is what the rule that stood when the panel was trained kept (a floor on kappa, and 1 to 4 standard errors);
it is in the runs' result files. z: of each rung, zero-shot's look-alikes being asked. Test images are weighted as the
unlabeled ones; the standard error is of the paired difference. The table goes to benchmarks/shifts/judged.json too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shifts.packages import ROOT
from benchmarks.shifts.tasks import FITTED, JUDGING
from must.method.select.alpha import choose_alpha
from must.method.select.ladder import RUNGS
from must.method.select.rung_predictions import RungPredictions

ALPHAS = (0.0, *RUNGS)
JUDGED = Path(__file__).with_name("judged.json")


def judged(stem: str, before: float) -> dict[str, Any]:
    looks = dict(np.load(sorted((ROOT / "runs" / stem).glob("looks-*.npz"))[-1]))
    truth, counts = looks["test_truth"], looks["counts"]
    weight = (counts / np.maximum(np.bincount(truth, minlength=len(counts)), 1))[truth]
    weight = weight / weight.sum()
    right = (looks["test"] == truth).astype(float)
    change = right - right[0]
    points = 100 * (weight * change).sum(axis=1)
    error = 100 * np.sqrt((weight**2 * (change - (weight * change).sum(1, keepdims=True)) ** 2).sum(axis=1))
    tokens = looks["tokens"].astype(np.float32)
    seen = RungPredictions(np.arange(len(tokens)), tokens, looks["probabilities"], looks["labels"])
    found = choose_alpha(seen).climb
    at = ALPHAS.index(found.alpha)
    task, variant, setting, images, seed = stem.split(".")
    return {
        "task": task, "variant": variant, "setting": setting, "shown": int(images), "seed": int(seed),
        "role": "fitted" if task in FITTED else "judging" if task in JUDGING else "old",
        "classes": looks["probabilities"].shape[2], "images": found.images, "kappa": found.agreement,
        "preferred": found.preferred, "zero_shot": float(100 * (weight * right[0]).sum()),
        "full": float(points[-1]), "before": before, "kept": float(points[at]), "error": float(error[at]),
        "alpha": found.alpha, "best": float(points.max()), "blind_fifth": float(points[2]),
        "points": points.round(2).tolist(), "z": [0.0] + [round(rung.from_zero_shot, 2) for rung in found.rungs],
        "undecided": found.undecided is not None,
    }  # fmt: skip


def main() -> None:
    rows = []
    print(
        "| role | task | variant | setting | classes | images | zero-shot | all of it | before | kept | best | kappa |"
    )
    print("|---|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for result in sorted((ROOT / "results").glob("*.json")):
        found = json.loads(result.read_text())
        if not list((ROOT / "runs" / result.stem).glob("looks-*.npz")):
            continue
        row = judged(result.stem, round(found["kept"] - found["zero_shot"], 2))
        rows.append(row)
    for row in sorted(rows, key=lambda r: (r["role"], r["task"], r["variant"], r["setting"])):
        print(
            f"| {row['role']} | {row['task']} | {row['variant']} | {row['setting']} | {row['classes']} | "
            f"{row['images']:,} | {row['zero_shot']:.1f} | {row['full']:+.1f} | {row['before']:+.1f} | "
            f"{row['kept']:+.1f} (±{row['error']:.1f}) at {row['alpha']:g} | {row['best']:+.1f} | {row['kappa']:.2f} |"
        )
    for role in ("fitted", "old", "judging"):
        some = [row for row in rows if row["role"] == role]
        if some:
            sums = {name: sum(r[name] for r in some) for name in ("full", "before", "kept", "blind_fifth", "best")}
            harmed = sum(row["kept"] < -1 for row in some)
            print(f"{role}: {len(some)} runs, sums " + ", ".join(f"{k} {v:+.1f}" for k, v in sums.items())
                  + f"; kept below -1 in {harmed}, least {min(r['kept'] for r in some):+.1f}")  # fmt: skip
    JUDGED.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
