"""The table of the shift suite, from the looks that `run` kept: what today's ladder keeps, and what the gate would say.

    python -m benchmarks.shifts.table [--markdown]

Nothing is trained: each run's choice is made again by the code that is checked out now. Changes are in points of top-1
on test images that no choice saw, weighted so that classes are as frequent as among the unlabeled images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shifts.packages import ROOT
from benchmarks.shifts.refined import refined_top1
from benchmarks.shifts.run import top1
from must.select.choose import choose
from must.select.ladder import RUNGS
from must.select.looking import Looks

GAPS = "| {} | {} | {} | {:.1f} | {:+.1f} | {:+.1f} at {:.1f} | {:+.1f} | {:+.1f} | {:.2f} | {} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    rows = [row_of(folder) for folder in sorted((ROOT / "runs").iterdir()) if list(folder.glob("looks-*.npz"))]
    (ROOT / "table.json").write_text(json.dumps(rows, indent=1))
    print("| task | variant | settings | zero-shot | all of it | kept | best | refined | agreement | gate on it all |")
    print("|---|---|---|--:|--:|--:|--:|--:|--:|---|")
    for row in rows:
        print(
            GAPS.format(
                row["task"], row["variant"], row["setting"], row["zero_shot"], row["full"], row["kept"], row["alpha"],
                row["best"], row["refined"], row["agreement"] or 0, row["gate"],
            )
        )  # fmt: skip
    kept, full = np.array([row["kept"] for row in rows]), np.array([row["full"] for row in rows])
    print(f"\n{len(rows)} runs. All of it: {(full < -1).sum()} worse by more than a point, sum {full.sum():+.1f}")
    print(f"kept: {(kept < -1).sum()} worse by more than a point, {(kept < 0).sum()} at all (least {kept.min():+.1f}), "
          f"sum {kept.sum():+.1f}, zero-shot kept in {sum(row['alpha'] == 0 for row in rows)}")  # fmt: skip


def row_of(folder: Path) -> dict[str, Any]:
    task, variant, setting, images, seed = folder.name.split(".")
    with np.load(sorted(folder.glob("looks-*.npz"))[-1]) as file:
        kept = {name: file[name] for name in file.files}
    looks = Looks(np.arange(len(kept["hidden"])), kept["tokens"], kept["probabilities"], kept["labels"])
    choice = choose(looks)
    truth = kept["test_truth"]
    again = choose(Looks(np.arange(len(truth)), kept["test_tokens"], kept["test_probabilities"], kept["test"]))
    accuracy = [top1(said, truth, kept["counts"]) for said in kept["test"]]
    zero_shot, alphas = accuracy[0], (0.0, *RUNGS)
    return {
        "task": task,
        "variant": variant,
        "setting": setting,
        "images": int(images),
        "seed": int(seed),
        "zero_shot": zero_shot,
        "full": accuracy[-1] - zero_shot,
        "kept": accuracy[alphas.index(choice.climb.alpha)] - zero_shot,
        "alpha": choice.climb.alpha,
        "best": max(accuracy) - zero_shot,
        "refined": refined_top1(kept) - zero_shot,
        "agreement": choice.climb.agreement,
        "gate": again.outcome,
        "signal": choice.signal,
        "rungs": choice.to_dict()["rungs"],
    }


if __name__ == "__main__":
    main()
