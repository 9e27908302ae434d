"""What the threshold for naming no class is worth on every task: its promise against labels that it never saw.

    python -m benchmarks.shifts.abstain [--target 0.05]

Reads what benchmarks/shifts/run.py has kept. On the unlabeled images look-alikes choose the threshold, for zero-shot
and for parts of the adaptation, also where must/method/select/abstain.py would promise nothing for so small a part.
What is really wrong (of how many images that get a class) is counted on the test images, weighted as the unlabeled
ones. `junk` are unlabeled images of none of the classes; the last column is the share of them that gets no class, of
what was kept.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from benchmarks.shifts.packages import ROOT
from must.method.select.abstain import KEPT, TARGET, by_look_alikes
from must.method.select.ladder import RUNGS
from must.method.select.neighbours import look_alikes

ALPHAS = (0.0, *RUNGS)
SHOWN = (0.0, 0.2, 0.5, 0.8, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=float, default=TARGET)
    target = parser.parse_args().target
    print("| task | variant | kept | " + " | ".join(f"{alpha:g}" for alpha in SHOWN) + " | junk without a class |")
    print("|---|---|--:|" + "--:|" * (len(SHOWN) + 1))
    near, promised = [], []
    for result in sorted((ROOT / "results").glob("*.json")):
        row = json.loads(result.read_text())
        saved = sorted((ROOT / "runs" / result.stem).glob("looks-*.npz"))
        if not saved or row["setting"] != "auto":
            continue
        looks = dict(np.load(saved[-1]))
        found = {alpha: measured(looks, ALPHAS.index(alpha), target) for alpha in ALPHAS}
        kept = row["snapshots"][-1]["choice"]["alpha"]
        cells = [cell(*found[alpha][:2]) for alpha in SHOWN]
        print("| " + " | ".join([row["task"], row["variant"], f"{kept:g}", *cells, found[kept][2]]) + " |", flush=True)
        near += [risk for risk in (found[0.0][1],) if risk is not None]
        promised += [risk for risk in (found[kept][1],) if risk is not None and kept >= KEPT]
    for name, risks in (("zero-shot", near), (f"kept, {KEPT:g} or more", promised)):
        if risks:
            over = sum(risk > target for risk in risks)
            print(
                f"\n{name}: {len(risks)} thresholds for {target:.0%}; really wrong {100 * np.mean(risks):.1f}% on "
                f"average, {100 * max(risks):.1f}% at most, more than was said in {over}"
            )


def measured(looks: dict[str, np.ndarray], rung: int, target: float) -> tuple[float, float | None, str]:
    """(share of the images that get a class, how many of those are wrong or None, share of junk without a class)."""
    neighbours, originals = look_alikes(looks["tokens"].astype(np.float32))
    probabilities = looks["probabilities"][rung].astype(np.float32)
    chosen = by_look_alikes(probabilities[originals], looks["labels"][rung][originals], neighbours, 1.0, target)
    if chosen["threshold"] is None:
        return 0.0, None, ""
    weight, wrong = weights(looks["test_truth"], looks["counts"]), looks["test"][rung] != looks["test_truth"]
    named = looks["test_probabilities"][rung].astype(np.float32).max(axis=1) >= chosen["threshold"]
    junk = probabilities[looks["hidden"] < 0].max(axis=1)
    unnamed = f"{100 * (junk < chosen['threshold']).mean():.0f}%" if len(junk) else ""
    coverage = float(weight[named].sum())
    return coverage, float(weight[named & wrong].sum()) / coverage if coverage else None, unnamed


def weights(labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Of the test images, so that classes are as frequent as among the unlabeled ones; their sum is 1."""
    weight = (counts / np.maximum(np.bincount(labels, minlength=len(counts)), 1))[labels]
    return weight / weight.sum()


def cell(coverage: float, risk: float | None) -> str:
    return "none" if risk is None else f"{100 * risk:.1f}% of {100 * coverage:.0f}%"


if __name__ == "__main__":
    main()
