"""`--preset auto` on every task and variant with two seeds, and the tables of benchmarks/README.md.

python -m benchmarks.shifts.families                     (fonts; npm and pip)
MUST_PHOTOS=DIR python -m benchmarks.shifts.panel        (hours of one core; existing results are not computed again)
python -m benchmarks.shifts.panel --tables               (from the results)
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import torch

from benchmarks.shifts.families import ROOT
from benchmarks.shifts.run import run_task
from benchmarks.shifts.tasks import DEVELOPMENT, HELD_OUT, VARIANTS

SEEDS = (0, 1)
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="print the tables; run nothing")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--families", nargs="+", default=(*HELD_OUT, *DEVELOPMENT))
    parser.add_argument("--name", default="auto", help="of the settings, in the results")
    options = parser.parse_args()
    if options.tables:
        print(tables(options.name))
        return
    torch.set_num_threads(1)
    for seed in options.seeds:
        for variant in VARIANTS:
            for family in options.families:
                run_task(family, variant, seed, options.name)


def tables(name: str) -> str:
    """Changes against zero-shot: by model and answers over all runs of a role, and by run."""
    results = [json.loads(path.read_text()) for path in sorted((ROOT / "results").glob(f"*.{name}.*.json"))]
    lines = list[str]()
    for role, names in (("held-out", HELD_OUT), ("development", DEVELOPMENT)):
        runs = [row for row in results if row["task"] in names]
        for kind in ("present", "all") if runs else ():
            lines += ["", f"| {role}, {kind} classes | runs | mean | worst | below -1 |", "|---|--:|--:|--:|--:|"]
            for model in dict.fromkeys(model for row in runs for model in row[kind]):
                changes = [row[kind][model] - row[kind]["0 tower"] for row in runs if model in row[kind]]
                below = sum(change < -1 for change in changes)
                lines.append(
                    f"| {model} | {len(changes)} | {statistics.mean(changes):+.1f} | {min(changes):+.1f} | {below} |"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
