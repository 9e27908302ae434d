"""`--preset auto` on every task and variant with two seeds, and the tables of docs/measured.md.

python -m benchmarks.shifts.families                     (fonts; npm and pip)
MUST_PHOTOS=DIR python -m benchmarks.shifts.panel        (hours of one core; existing results are not computed again)
python -m benchmarks.shifts.panel --tables               (from the results)
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import torch
from must.method.select.select import ALPHAS

from benchmarks.shifts.families import ROOT
from benchmarks.shifts.run import ANSWERS, run_task
from benchmarks.shifts.tasks import DEVELOPMENT, HELD_OUT, VARIANTS

SEEDS = (0, 1)
HALF, ALL = ALPHAS.index(0.5), len(ALPHAS) - 1
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
    results = [json.loads(path.read_text()) for path in sorted((ROOT / "results").glob(f"*.{name}.*.json"))]
    rows = {(row["task"], row["variant"], row["seed"]): row for row in results}
    lines = ["| family (classes) | role | zero-shot | " + " | ".join(VARIANTS) + " |", "|---|---|--:|" + "--:|" * 5]
    for family in (*HELD_OUT, *DEVELOPMENT):
        family_rows = [rows[key] for key in rows if key[0] == family]
        if not family_rows:
            continue
        role = "held-out" if family in HELD_OUT else "development"
        cells = ["; ".join(cell(row) for row in family_rows if row["variant"] == variant) for variant in VARIANTS]
        as_is = next((row for row in family_rows if row["variant"] == "as-is"), family_rows[0])
        lines.append(f"| {family} ({as_is['classes']}) | {role} | {as_is['zero_shot']:.1f} | {' | '.join(cells)} |")
    for table in (gains, labels):
        for role, names in (("held-out", HELD_OUT), ("development", DEVELOPMENT)):
            lines += ["", *table([row for row in results if row["task"] in names], role)]
    return "\n".join(lines)


def cell(row: Row) -> str:
    points = row["points"]
    return f"{points[ALL]:+.1f} / {kept_gain(row):+.1f} / {max(points):+.1f}"


def kept_gain(row: Row) -> float:
    return float(row["points"][ALPHAS.index(row["kept"])])


def gains(rows: list[Row], role: str) -> list[str]:
    """The mean gains with alpha 1, 0.5, the automatic one, and the best one by labels."""
    columns: dict[str, Callable[[Row], float]] = {
        "all": lambda row: row["points"][ALL], "half": lambda row: row["points"][HALF], "kept": kept_gain,
        "best": lambda row: max(row["points"]),
    }  # fmt: skip
    lines = [
        f"| {role} | runs | alpha 1: mean (median) | alpha 0.5 | auto (share of best) | best alpha | runs below -1 | "
        "of these over 1 s.e. | worst run |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for variant in (*VARIANTS, "together"):
        runs = [row for row in rows if variant in ("together", row["variant"])]
        if not runs:
            continue
        values = {name: [value(row) for row in runs] for name, value in columns.items()}
        below = [row for row in runs if kept_gain(row) < -1]
        beyond = [row for row in below if -kept_gain(row) > row["errors"][ALPHAS.index(row["kept"])]]
        means = {name: mean(points) for name, points in values.items()}
        share = f" ({sum(values['kept']) / sum(values['best']):.0%})" if sum(values["best"]) > 0 else ""
        lines.append(
            f"| {variant} | {len(runs)} | {means['all']} ({statistics.median(values['all']):+.1f}) | "
            f"{means['half']} | {means['kept']}{share} | {means['best']} | {len(below)} | {len(beyond)} | "
            f"{min(values['kept']):+.1f} |"
        )
    return lines


def labels(rows: list[Row], role: str) -> list[str]:
    """Mean gains of the unlabeled images' labels over the zero-shot model's."""
    names = [f"gain of {count} answers" for count in ANSWERS]
    head = "".join(f" with {count} answers |" for count in ANSWERS)
    lines = [f"| {role}, labels of the images | runs | adapted | refined | worst refined |{head}"]
    lines.append("|---|--:|--:|--:|--:|" + "--:|" * len(ANSWERS))
    for variant in (*VARIANTS, "together"):
        runs = [row["labels"] for row in rows if variant in ("together", row["variant"])]
        if not runs:
            continue
        adapted, refined = ([row[name] - row["zero_shot"] for row in runs] for name in ("adapted", "refined"))
        answers = "".join(f" {mean(row[name] for row in runs if name in row)} |" for name in names)
        lines.append(f"| {variant} | {len(runs)} | {mean(adapted)} | {mean(refined)} | {min(refined):+.1f} |{answers}")
    return lines


def mean(values: Iterable[float]) -> str:
    known = list(values)
    return f"{statistics.mean(known):+.1f}" if known else ""


if __name__ == "__main__":
    main()
