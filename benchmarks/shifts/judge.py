"""What the ladder keeps of every run of the two later panels, beside all of the adaptation and the best rung by labels.

    python -m benchmarks.shifts.judge [--anew]      (seconds a run; reads what benchmarks/shifts/run.py has kept)
    python -m benchmarks.shifts.judge --own         (of `auto` as it is alone: a row a family, from judged.json)

Runs that judged.json has are taken from there: with --anew only those that are not on this machine. Two earlier rules
stand beside: `floor`, with a floor on kappa, of the runs that were trained while it stood; and `steps`, that of today
without "at once". z: of each rung, zero-shot's look-alikes being asked. Test images are weighted as the unlabeled ones;
standard errors are of the paired difference.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shifts.evidence import gate
from benchmarks.shifts.packages import ROOT
from benchmarks.shifts.tasks import CONTROLS, FITTED, JUDGING, VARIANTS, WIDE
from must.method.select import ladder
from must.method.select.alpha import choose_alpha
from must.method.select.ladder import NEEDED, RUNGS, SLOPE
from must.method.select.neighbours import judges, look_alikes
from must.method.select.rung_predictions import RungPredictions

ALPHAS = (0.0, *RUNGS)
JUDGED = Path(__file__).with_name("judged.json")
COLUMNS = ("full", "blind_fifth", "floor", "steps", "kept", "best")
Row = dict[str, Any]


def judged(stem: str) -> Row:
    looks = dict(np.load(sorted((ROOT / "runs" / stem).glob("looks-*.npz"))[-1]))
    zero_shot, points, errors = measured(looks)
    tokens = looks["tokens"].astype(np.float32)
    seen = RungPredictions(np.arange(len(tokens)), tokens, looks["probabilities"], looks["labels"])
    found = choose_alpha(seen).climb
    with steps_alone():
        stepped = choose_alpha(seen).climb.alpha
    task, variant, setting, images, seed = stem.split(".")
    at = ALPHAS.index(found.alpha)
    return {
        "task": task, "variant": variant, "setting": setting, "shown": int(images), "seed": int(seed),
        "role": role_of(task), "classes": looks["probabilities"].shape[2], "images": found.images,
        "kappa": found.agreement, "preferred": found.preferred, "zero_shot": zero_shot,
        "points": points.round(2).tolist(), "errors": errors.round(2).tolist(),
        "z": [0.0] + [round(rung.from_zero_shot, 2) for rung in found.rungs],
        "z_between": between(seen),
        "steps_alpha": stepped, "alpha": found.alpha, "undecided": found.undecided is not None,
        "gate_on_all": gate(looks, len(RUNGS), 0.0), "gate_on_kept": gate(looks, at, found.alpha),
    }  # fmt: skip


def measured(looks: Mapping[str, np.ndarray]) -> tuple[float, np.ndarray, np.ndarray]:
    """Zero-shot's top-1 in percent; of zero-shot and each rung the points above it, and their standard errors."""
    truth, counts = looks["test_truth"], looks["counts"]
    weight = (counts / np.maximum(np.bincount(truth, minlength=len(counts)), 1))[truth]
    weight = weight / weight.sum()
    right = (looks["test"] == truth).astype(float)
    change = right - right[0]
    points = 100 * (weight * change).sum(axis=1)
    errors = 100 * np.sqrt((weight**2 * (change - (weight * change).sum(1, keepdims=True)) ** 2).sum(axis=1))
    return float(100 * (weight * right[0]).sum()), points, errors


def between(seen: RungPredictions) -> list[list[float]]:
    """z of rung j + i + 1, the look-alikes of rung j being asked, zero-shot first: all that a ladder can ask."""
    _, originals = look_alikes(seen.tokens)
    kept = seen.only(originals)
    neighbours = judges(kept.tokens)
    said, labels = kept.probabilities, kept.labels
    return [
        [round(ladder.audit(said[j], labels[j], new, neighbours)[0], 2) for new in labels[j + 1 :]]
        for j in range(len(labels) - 1)
    ]


def role_of(task: str) -> str:
    return "fitted" if task in FITTED else "judging" if task in JUDGING else "old"


@contextlib.contextmanager
def steps_alone() -> Iterator[None]:
    """The ladder before zero-shot's look-alikes could speak for a rung at once."""
    usual = ladder.needed_of, ladder.SLOPE
    ladder.needed_of = lambda alpha, kept: 0.0 if alpha <= 0.1 + 1e-9 and not kept else max(3.0, 6 * (alpha - kept))
    ladder.SLOPE = float("inf")
    try:
        yield
    finally:
        ladder.needed_of, ladder.SLOPE = usual


def at_once(row: Row) -> float:
    """The share that is kept of a run of which only `z` is left: steps and refusals are recorded, and zero-shot's
    look-alikes do not depend on them. Only renamed classes are not seen."""
    refused = len(row["z"]) < len(ALPHAS)
    for number in range(len(row["z"]) - 1, 0, -1):
        z = row["z"][number]
        if ALPHAS[number] > row["steps_alpha"] and z > SLOPE * ALPHAS[number] and not (refused and z <= NEEDED):
            return ALPHAS[number]
    return row["steps_alpha"]


def completed(row: Row) -> Row:
    points = row["points"]
    more = {"full": points[-1], "best": max(points), "blind_fifth": points[2]}
    return row | more | {"steps": points[ALPHAS.index(row["steps_alpha"])], "kept": points[ALPHAS.index(row["alpha"])]}


def rows(anew: bool) -> list[Row]:
    known = {key_of(row): row for row in json.loads(JUDGED.read_text())}
    for result in sorted((ROOT / "results").glob("*.json")):
        if not anew and "errors" in known.get(key_of_stem(result.stem), {}):
            continue
        if list((ROOT / "runs" / result.stem).glob("looks-*.npz")):
            row = judged(result.stem)
            key = key_of(row)
            known[key] = {"floor": known.get(key, {}).get("floor")} | row
    for row in known.values():
        row["role"] = role_of(row["task"])
        if "errors" not in row:
            row["alpha"] = at_once(row)
    return sorted((completed(row) for row in known.values()), key=lambda row: (row["role"], *key_of(row)))


def key_of(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("task", "variant", "setting", "shown", "seed"))


def key_of_stem(stem: str) -> tuple[Any, ...]:
    *names, shown, seed = stem.split(".")
    return (*names, int(shown), int(seed))


def number(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anew", action="store_true")
    parser.add_argument("--own", action="store_true")
    options = parser.parse_args()
    if options.own:
        print_own([completed(row) for row in json.loads(JUDGED.read_text())])
        return
    found = rows(options.anew)
    print("| role | task | variant | setting | shown, seed | classes | images | zero-shot | all of it | a fifth | "
          "floor | steps | kept | best |")  # fmt: skip
    print("|---|---|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for row in found:
        error = f" (±{row['errors'][ALPHAS.index(row['alpha'])]:.1f})" if "errors" in row else ""
        shown = f"{row['shown']:,}" if row["shown"] else "own"
        values = " | ".join(number(row[name]) for name in ("full", "blind_fifth", "floor", "steps"))
        print(
            f"| {row['role']} | {row['task']} | {row['variant']} | {row['setting']} | {shown}, {row['seed']} "
            f"| {row['classes']} | {row['images']:,} | {row['zero_shot']:.1f} | {values} | "
            f"{row['kept']:+.1f}{error} at {row['alpha']:g} | {row['best']:+.1f} |"
        )
    print()
    print("| sums | runs | all of it | a fifth | steps | kept | best | kept below -1 | least |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for name, some in groups(found).items():
        sums = " | ".join(f"{sum(row[n] for row in some):+.1f}" for n in COLUMNS if n != "floor")
        kept = [row["kept"] for row in some]
        print(f"| {name} | {len(some)} | {sums} | {sum(k < -1 for k in kept)} | {min(kept):+.1f} |")
    gates(found)
    JUDGED.write_text("[" + ",\n ".join(json.dumps(row) for row in found) + "]\n")


def print_own(found: list[Row]) -> None:
    """Of each family and variant all of the adaptation / what is kept / the best rung, one seed after the other."""
    own = [r for r in found if r["setting"] == "auto-gentle" and not r["shown"] and "errors" in r]
    own = [r for r in own if r["variant"] not in CONTROLS]
    variants = [v for v in VARIANTS if any(r["variant"] == v for r in own)]
    print("| family (classes) | role | zero-shot | " + " | ".join(variants) + " |")
    print("|---|---|--:|" + "--:|" * len(variants))
    for task in sorted({r["task"] for r in own}, key=lambda t: (role_of(t) != "judging", t)):
        some = [r for r in own if r["task"] == task]
        plain = [r["zero_shot"] for r in some if r["variant"] == "as-is"]
        cells = []
        for variant in variants:
            seeds = sorted((r for r in some if r["variant"] == variant), key=lambda r: r["seed"])
            cells.append("; ".join(" / ".join(f"{r[name]:+.1f}" for name in ("full", "kept", "best")) for r in seeds))
        shot = f"{plain[0]:.1f}" if plain else ""
        print(f"| {task} ({some[0]['classes']}) | {role_of(task)} | {shot} | " + " | ".join(cells) + " |")
    judging = [r for r in own if r["role"] == "judging"]
    print()
    print(
        "| judging, auto as it is | runs | all of it, sum (median) | a fifth | kept | best | kept below -1 "
        "| of those beyond its standard error | least |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for name in (*variants, "all"):
        some = [r for r in judging if name in (r["variant"], "all")]
        full = [r["full"] for r in some]
        sums = " | ".join(f"{sum(r[c] for r in some):+.1f}" for c in ("blind_fifth", "kept", "best"))
        below = [r for r in some if r["kept"] < -1]
        beyond = [r for r in below if r["kept"] < -1 - r["errors"][ALPHAS.index(r["alpha"])]]
        print(
            f"| {name} | {len(some)} | {sum(full):+.1f} ({np.median(full):+.1f}) | {sums} | {len(below)} "
            f"| {len(beyond)} | {min(r['kept'] for r in some):+.1f} |"
        )


def groups(found: list[Row]) -> dict[str, list[Row]]:
    """By role; runs of `auto` as it is, those that judged after "at once" was taken into the rule, the third panel and
    the controls stand for themselves."""
    made: dict[str, list[Row]] = {}
    for row in found:
        name = row["role"]
        if row["variant"] in CONTROLS or row["setting"] == "auto-aimless":
            name = "controls"
        elif row["setting"] == "auto-gentle":
            name += ", auto as it is" + (", shorter" if row["shown"] else "")
        elif row["task"] in WIDE:
            name += ", third panel"
        elif name == "judging":
            name += ", since" if "errors" in row else ", before"
        made.setdefault(name, []).append(row)
    return made


def gates(found: list[Row]) -> None:
    """How often the label-free gate passes what is better or worse by more than a point."""
    for name, column in (("gate_on_all", "full"), ("gate_on_kept", "kept")):
        some = [row for row in found if name in row and (column == "full" or row["alpha"])]
        for sign, word in ((1, "better"), (-1, "worse")):
            there = [row[name] for row in some if sign * row[column] > 1]
            print(f"{name}: passed {sum(there)} of {len(there)} {word} by more than a point")


if __name__ == "__main__":
    main()
