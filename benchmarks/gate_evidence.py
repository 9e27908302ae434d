"""How well do label-free signals tell good adaptations from bad ones? Trains both kinds on the bundled digits.

    python benchmarks/gate_evidence.py --output evidence/ [--epochs 12] [--seeds 0 1]

What was trained already is not trained again, so that the runs can be done in pieces: stop it, go on with the same
command, or give one seed after the other and all of them at the end (about 7 minutes a seed on two cores).

Each row is a whole run of `must train --select none` with settings that are right, doubtful or wrong on purpose, or a
model damaged after training; and what `must select` keeps of it. Signals, ladder and gate see no label; those of the
test part judge them afterwards. More tasks: benchmarks/shifts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr

from must.api.demo import demo
from must.base.parameters import load
from must.config import ClassifierConfig, DemoConfig, EvaluateConfig, GateConfig, SelectConfig, ShardConfig, TrainConfig
from must.data.shards.build import shard
from must.evaluation.evaluate import evaluate
from must.evaluation.gate import label_free_gate
from must.method.model.bundle import load_bundle, save_bundle
from must.method.model.classifier import classifier, load_text_classifier, save_classifier
from must.method.select.select import select
from must.method.train.presets import preset
from must.method.train.trainer import train

RUNS: dict[str, dict[str, Any]] = {
    "preset": {},
    "half as long": {"epochs": 0.5},
    "four epochs": {"epochs": 4},
    "threshold 0.95": {"confidence_threshold": 0.95},
    "no fairness": {"fairness_weight": 0},
    "no fairness, threshold 0": {"fairness_weight": 0, "confidence_threshold": 0},
    "learning rate x 10": {"lr": 0.04},
    "learning rate x 10, no fairness": {"lr": 0.04, "fairness_weight": 0},
    "logit factor 100": {"logit_factor": "100"},
    "mirrored views": {"flip": 0.5},
    "three names shuffled": {"shuffle": 3},
    "all names shuffled": {"shuffle": 10},
}
DAMAGED = {"two classes swapped": "swap", "noise on the weights": "noise", "all images one class": "collapse"}
SIGNALS = {
    "neighbours": lambda free: free["compared"]["audit"]["signal"]["value"],
    "estimated change": lambda free: free["compared"]["estimated_change"],
    "confidence change": lambda free: free["compared"]["confidence_change"],
    "agreement": lambda free: free["compared"]["agreement"],
    "agreement, confident": lambda free: free["compared"]["agreement_confident"],
    "confidence": lambda free: free["adapted"]["confidence"],
    "mutual information": lambda free: free["adapted"]["mutual_information"],
    "nuclear norm": lambda free: free["adapted"]["nuclear_norm"],
    "effective classes": lambda free: free["adapted"]["effective_classes"],
    "- histogram distance": lambda free: -free["compared"]["histogram_distance"],
    "stability": lambda free: free["training"] and free["training"]["stability"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    root = Path(options.output)
    with quiet():
        shards, names = prepare(root)
    rows = []
    for seed in options.seeds:
        for name, changes in RUNS.items():
            folder = root / f"{name} {seed}".replace(" ", "-")
            with quiet():
                run(folder, shards, names, changes, seed, options)
            rows.append(judge(name, seed, folder, shards, names, root))
        for name, damage in DAMAGED.items():
            folder = root / f"{name} {seed}".replace(" ", "-")
            damaged(root / f"preset-{seed}", folder, damage)
            rows.append(judge(name, seed, folder, shards, names, root))
    (root / "evidence.json").write_text(json.dumps(rows, indent=1))
    summarize(rows)


def prepare(root: Path) -> tuple[str, str]:
    demo(DemoConfig(output=str(root / "demo")))
    shards, names = str(root / "shards"), str(root / "classifier.safetensors")
    images = root / "demo/images"
    shard(
        ShardConfig(
            source=str(images / "unlabeled"),
            test_source=str(images / "test"),
            labels="folder",
            output=shards,
            workers=1,
        )
    )
    classifier(ClassifierConfig(classes=str(root / "demo/classes.yaml"), model=str(root / "demo/model"), output=names))
    return shards, names


def run(folder: Path, shards: str, names: str, changes: dict[str, Any], seed: int, options: argparse.Namespace) -> None:
    """A training run; skipped when its bundle is there already."""
    if (folder / "model.json").exists():
        return
    changes = dict(changes)
    weights = names
    if count := changes.pop("shuffle", 0):
        original = load_text_classifier(names)
        order = [*torch.arange(count).roll(1).tolist(), *range(count, original.weights.shape[1])]
        weights = str(folder / "shuffled.safetensors")
        folder.mkdir(parents=True, exist_ok=True)
        save_classifier(replace(original, weights=original.weights[:, order].contiguous()), weights)
    epochs = changes.pop("epochs", options.epochs)
    epochs = int(epochs * options.epochs) if epochs < 1 else epochs
    model = load_text_classifier(names).model
    flags = {"shards": shards, "classifier": weights, "output": str(folder), "epochs": epochs, "seed": seed, **changes}
    flags["select"] = "none"
    train(load(TrainConfig, flags | {"workers": options.workers, "device": "cpu"}, None, preset("digits", model)))


def damaged(source: Path, folder: Path, damage: str) -> None:
    bundle = load_bundle(str(source))
    weights = bundle.model.classifier.data
    if damage == "swap":
        weights[:, [3, 8]] = weights[:, [8, 3]]
    elif damage == "collapse":
        weights[:] = weights.mean(1, keepdim=True) + 0.02 * weights
        weights[:, 4] += 0.2 * weights[:, 4]
    else:
        torch.manual_seed(0)
        for parameter in bundle.model.visual.parameters():
            parameter.data += 0.35 * parameter.data.std() * torch.randn_like(parameter)
    save_bundle(str(folder), bundle.model, bundle.description)


def judge(name: str, seed: int, folder: Path, shards: str, names: str, root: Path) -> dict[str, Any]:
    """Evaluates with labels, and asks the gate, which does not see them."""
    config = EvaluateConfig(
        model=str(folder), baseline=names, shards=shards, output=str(folder / "report"), workers=0, device="cpu"
    )
    with quiet():
        metrics = evaluate(config)
        selected = replace(config, model=str(folder / "kept"), output=str(folder / "kept-report"))
        choice = select(
            SelectConfig(
                model=str(folder), baseline=names, shards=shards, output=selected.model, workers=0, device="cpu"
            )
        )
        kept = evaluate(selected)
    limits = GateConfig(metrics="")
    decision, after = label_free_gate(metrics, limits), label_free_gate(kept, limits)
    change, rescued = (found["adapted"]["top1"] - found["baseline"]["top1"] for found in (metrics, kept))
    free = metrics["label_free"]
    row = {"run": name, "seed": seed, "top1": metrics["adapted"]["top1"], "change": change, "kept": rescued}
    row |= {signal: value(free) for signal, value in SIGNALS.items()}
    row |= {"passed": decision.passed, "reasons": [text for text in decision.reasons if text.startswith("STOP")]}
    row |= {"alpha": choice.climb.alpha, "kept_passed": after.passed, "kept_outcome": after.outcome}
    print(
        f"| {name} | {100 * change:+.1f} | {'pass' if decision.passed else 'stop'} | {100 * rescued:+.1f} at "
        f"{choice.climb.alpha:.1f} | {after.outcome} | {row['neighbours']:+.2f} | {100 * row['estimated change']:+.1f} "
        f"| {row['agreement']:.2f} |",
        flush=True,
    )
    return row


def summarize(rows: list[dict[str, Any]]) -> None:
    print("\nSpearman correlation with the change of accuracy")
    for signal in SIGNALS:
        known = [r for r in rows if r[signal] is not None]
        rank = spearmanr([r[signal] for r in known], [r["change"] for r in known]).statistic
        print(f"  {signal:<22}{rank:+.2f}  of {len(known)} models")
    for signal in ("estimated change", "confidence change"):
        error = sum(abs(r[signal] - r["change"]) for r in rows) / len(rows)
        sign = sum((r[signal] > 0) == (r["change"] > 0) for r in rows)
        print(f"{signal}: {100 * error:.1f} points off on average, right about the sign of {sign} of {len(rows)}")
    for seed in sorted({r["seed"] for r in rows}):
        good = [r for r in rows if r["change"] > 0 and r["seed"] == seed]
        bad = [r for r in rows if r["change"] <= 0 and r["seed"] == seed]
        print(
            f"gate, seed {seed}: passed {sum(r['passed'] for r in good)} of {len(good)} that were better than "
            f"zero-shot, stopped {sum(not r['passed'] for r in bad)} of {len(bad)} that were not; after the ladder "
            f"{sum(r['kept'] < 0 for r in good + bad)} of {len(good + bad)} are below zero-shot (least "
            f"{100 * min(r['kept'] for r in good + bad):+.1f})"
        )


@contextlib.contextmanager
def quiet() -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        yield


if __name__ == "__main__":
    main()
