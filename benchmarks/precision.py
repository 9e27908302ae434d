"""Difference of training in bf16 from float32 on the bundled task, compared with that of another seed.

    python benchmarks/precision.py --output build/precision

Trains the preset `digits` for about 200 steps in float32 and in bf16 (autocast; weights, losses and EMA stay float32)
with the same seed, and in float32 with another. Prints the losses during training, their mean absolute difference
from the first run's, and top-1 of teacher and zero-shot model on the test part.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.digits import accuracy, must, prepare
from must.evaluation.figures import read_training_log
from must.model.bundle import load_bundle, make_zero_shot_bundle
from must.model.classifier import load_text_classifier

RUNS = {"fp32": ("fp32", 0), "bf16": ("bf16", 0), "fp32, other seed": ("fp32", 1)}
VALUES = ("loss_self_training", "loss_fairness", "loss_reconstruction", "loss_alignment", "confident")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for data, models and logs")
    parser.add_argument("--epochs", type=int, default=12, help="17 steps each [%(default)s]")
    options = parser.parse_args()
    prepare(options.output)
    classifier = str(options.output / "classifier.safetensors")
    print(f"zero-shot: top-1 {accuracy(make_zero_shot_bundle(load_text_classifier(classifier)), 'test'):.1f}")
    logs, base = {}, None
    for name, (precision, seed) in RUNS.items():
        folder = options.output / f"{precision}-{seed}-{options.epochs}"
        flags = ("--precision", precision, "--seed", seed, "--epochs", options.epochs, "--log-every", 10)
        must("train", "--preset", "digits", "--shards", options.output / "shards", "--classifier", classifier,
             "--output", folder, *flags)  # fmt: skip
        logs[name] = read_training_log(str(folder))
        base = base or logs[name]
        distance = {
            value: sum(abs(line[value] - first[value]) for line, first in zip(logs[name], base, strict=True))
            / len(base)
            for value in VALUES
        }
        print(f"\n{name}: top-1 {accuracy(load_bundle(str(folder)), 'test'):.1f}; mean distance from the first run: ")
        print("  " + "  ".join(f"{value} {number:.4f}" for value, number in distance.items()))
        for line in logs[name][4::5]:
            print(f"  step {line['step'] + 1:3}  " + "  ".join(f"{value} {line[value]:.3f}" for value in VALUES))


if __name__ == "__main__":
    main()
