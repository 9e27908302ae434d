"""The tables of the shift suite and its claims, from what `run` left; see docs/selection.md.

    python -m benchmarks.shifts.table [--settings auto imagenet sun397 gtsrb] [--save]

Runs that are not on this machine are taken from results.json, which --save renews; it has no signals.
Changes are in points of top-1 against zero-shot. `auto` is what a user gets who names nothing; the published rows are
what he would have guessed, without the ladder (`all of it`).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shifts.evidence import SIGNALS, evidence
from benchmarks.shifts.packages import ROOT

RESULTS = Path(__file__).with_name("results.json")
PUBLISHED = ("imagenet", "sun397", "gtsrb")
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=["auto", *PUBLISHED])
    parser.add_argument("--save", action="store_true", help="write all rows to results.json")
    options = parser.parse_args()
    wanted = options.settings
    folders = [path for path in sorted((ROOT / "runs").iterdir()) if path.name.split(".")[2] in wanted]
    rows = [evidence(folder) for folder in folders if list(folder.glob("looks-*.npz"))]
    (ROOT / "table.json").write_text(json.dumps(rows, indent=1))
    here = {key_of(row) for row in rows}
    earlier = [row for row in json.loads(RESULTS.read_text()) if row["setting"] in wanted and key_of(row) not in here]
    rows = sorted([*rows, *earlier], key=key_of)
    if options.save:
        RESULTS.write_text("[\n" + ",\n".join(json.dumps(short(row)) for row in rows) + "\n]\n")
    print_pairs(rows)
    print()
    print_claims(rows)
    print()
    print_signals(rows)


def key_of(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("task", "variant", "setting", "images", "seed"))


def short(row: Row) -> Row:
    def rounded(value: Any) -> Any:
        if isinstance(value, list):
            return [rounded(item) for item in value]
        return round(value, 2) if isinstance(value, float) else value

    return {name: rounded(value) for name, value in row.items() if name not in ("rungs", "signals")}


def print_pairs(rows: Sequence[Row]) -> None:
    """One line a task and variant: the published rows as they are, and auto."""
    titles = ("task", "variant", "seed", "zero-shot", "refined", "published rows: mean (worst, best)")
    print("| " + " | ".join((*titles, "auto: all of it", "kept", "best", "kappa")) + " |")
    print("|---|---|--:|--:|--:|---|--:|--:|--:|--:|")
    for (task, variant, seed), found in grouped(rows).items():
        auto, full = found.get("auto"), [found[name]["full"] for name in PUBLISHED if name in found]
        published = f"{np.mean(full):+.1f} ({min(full):+.1f}, {max(full):+.1f})" if full else ""
        any_row = next(iter(found.values()))
        ours = "| | |"
        if auto:
            ours = f"| {auto['full']:+.1f} | {auto['kept']:+.1f} at {auto['alpha']:.1f} | {auto['best']:+.1f} "
            ours += f"| {auto['agreement'] or 0:.2f}"
        before = f"{any_row['zero_shot']:.1f} | {any_row['refined']:+.1f}"
        print(f"| {task} | {variant} | {seed} | {before} | {published} {ours} |")


def grouped(rows: Sequence[Row]) -> dict[tuple[str, str, int], dict[str, Row]]:
    found: dict[tuple[str, str, int], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        found[row["task"], row["variant"], row["seed"]][row["setting"]] = row
    return found


def print_claims(rows: Sequence[Row]) -> None:
    pairs = [
        {
            "task": key[0],
            "variant": key[1],
            "gain": found["auto"]["kept"] - np.mean(full),
            "kept": found["auto"]["kept"],
        }
        for key, found in grouped(rows).items()
        if "auto" in found and (full := [found[name]["full"] for name in PUBLISHED if name in found])
    ]
    for title, chosen in (
        ("as is", [pair for pair in pairs if pair["variant"] == "as-is"]),
        ("variants", [pair for pair in pairs if pair["variant"] != "as-is"]),
    ):
        if chosen:
            mean, low, high = over_tasks(chosen, "gain")
            ours, _, _ = over_tasks(chosen, "kept")
            print(f"auto - mean of the published rows, {title}: {mean:+.1f} [{low:+.1f}, {high:+.1f}] points, "
                  f"auto - zero-shot {ours:+.1f} ({len(chosen)} pairs)")  # fmt: skip
    kept, whole = np.array([row["kept"] for row in rows]), np.array([row["full"] for row in rows])
    surely = sum(row["kept"] < -1 and row["interval"][1] < 0 for row in rows)
    print(f"all runs, {len(rows)}: without the ladder {(whole < -1).sum()} worse than zero-shot by more than a point "
          f"(least {whole.min():+.1f}, sum {whole.sum():+.1f}); {(whole > 1).sum()} better")  # fmt: skip
    print(f"with it: {(kept < -1).sum()} worse by more than a point, {surely} of them with an interval below zero; "
          f"{(kept < 0).sum()} below zero-shot at all (least {kept.min():+.1f}); sum {kept.sum():+.1f}")  # fmt: skip
    best = np.array([row["best"] for row in rows])
    much = best > 5
    most, lost = (float(values[much].mean()) if much.any() else 0.0 for values in (best, best - kept))
    print(f"fell back to zero-shot: {sum(row['alpha'] == 0 for row in rows)} of {len(rows)}; regret against the best "
          f"rung by labels: {(best - kept).mean():.1f} points, and {lost:.1f} of {most:.1f} where more than 5 were to "
          f"be had ({much.sum()} runs)")  # fmt: skip
    for name, key in (("all of the adaptation", "full"), ("what the ladder kept", "kept")):
        passed = np.array([row["gate_on_all" if key == "full" else "gate_on_kept"] for row in rows])
        change = np.array([row[key] for row in rows])
        print(f"gate on {name}: passed {(passed & (change > 1)).sum()} of {(change > 1).sum()} better by a point, "
              f"{(passed & (change < -1)).sum()} of {(change < -1).sum()} worse by a point")  # fmt: skip


def over_tasks(pairs: Sequence[Row], key: str) -> tuple[float, float, float]:
    """Mean over tasks of their pairs' means, and its 95% interval when tasks are drawn again."""
    tasks = sorted({pair["task"] for pair in pairs})
    means = np.array([np.mean([pair[key] for pair in pairs if pair["task"] == task]) for task in tasks])
    drawn = np.random.default_rng(0).integers(0, len(means), (10_000, len(means)))
    low, high = np.percentile(means[drawn].mean(axis=1), [2.5, 97.5])
    return float(means.mean()), float(low), float(high)


def print_signals(rows: Sequence[Row]) -> None:
    """Rank correlation with the change of accuracy: within (task, variant), mean over those with a spread; pooled."""
    groups = [[p for row in found.values() for p in row.get("signals", ())] for found in grouped(rows).values()]
    every = [point for group in groups for point in group]
    print("| signal | within a task and variant | all together |")
    print("|---|--:|--:|")
    for name in SIGNALS:
        inside = [spearman(group, name) for group in groups if len({point["change"] for point in group}) > 3]
        print(f"| {name} | {np.nanmean(inside):+.2f} | {spearman(every, name):+.2f} |")


def spearman(points: Sequence[dict[str, float]], name: str) -> float:
    ranks: Callable[[list[float]], np.ndarray] = lambda values: np.array(  # noqa: E731
        [np.mean(np.flatnonzero(np.sort(values) == value)) for value in values]
    )
    one, other = ranks([point[name] for point in points]), ranks([point["change"] for point in points])
    return float(np.corrcoef(one, other)[0, 1]) if one.std() > 0 and other.std() > 0 else float("nan")


if __name__ == "__main__":
    main()
