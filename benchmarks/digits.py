"""Accuracy of the bundled example over seeds, and how much each loss contributes.

    python benchmarks/digits.py --seeds 3,4,5,6,7,8 --output build/digits.json

Trains the preset `digits` with each seed, in full and without some of the losses, and with the default settings, and
measures top-1 of the teacher on the labelled test part (or, to choose settings, on the validation part). Results are
kept in the output file: a second run adds missing ones.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from must.api.demo import CLASSES, load_digits
from must.data.augment import normalize
from must.model.bundle import Bundle, load_bundle, make_zero_shot_bundle
from must.model.classifier import load_text_classifier
from must.model.description import get_preprocess

VARIANTS: dict[str, dict[str, float | str]] = {
    "self-training only": {"fairness-weight": 0, "reconstruction-weight": 0, "align-weight": 0},
    "+ fairness": {"reconstruction-weight": 0, "align-weight": 0},
    "+ reconstruction": {"align-weight": 0},
    "full method": {},
    "default settings": {"preset": "auto"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="3,4,5,6,7,8")
    parser.add_argument("--variants", default=",".join(reversed(VARIANTS)), help="comma-separated")
    parser.add_argument("--part", choices=("test", "validation"), default="test")
    parser.add_argument("--output", type=Path, required=True, help="JSON file with the results")
    options = parser.parse_args()
    work = options.output.parent / "digits-work"
    prepare(work)
    results = json.loads(options.output.read_text()) if options.output.exists() else {}
    zero_shot = accuracy(
        make_zero_shot_bundle(load_text_classifier(str(work / "classifier.safetensors"))), options.part
    )
    print(f"zero-shot {zero_shot:.1f}", flush=True)
    for variant in options.variants.split(","):
        for seed in options.seeds.split(","):
            key = f"{options.part}/{variant}/{seed}"
            if key not in results:
                started = time.perf_counter()
                model = train(work, VARIANTS[variant], seed)
                seconds = round(time.perf_counter() - started, 1)
                results[key] = {"top1": accuracy(load_bundle(str(model)), options.part), "seconds": seconds}
                options.output.write_text(json.dumps(results, indent=1))
            print(f"{variant:20} seed {seed}: {results[key]['top1']:.1f} ({results[key]['seconds']} s)", flush=True)


def prepare(work: Path) -> None:
    if (work / "classifier.safetensors").exists():
        return
    must("demo", "--output", work)
    must("shard", "--source", work / "images" / "unlabeled", "--output", work / "shards")
    classifier = work / "classifier.safetensors"
    must("classifier", "--classes", work / "classes.yaml", "--model", work / "model", "--output", classifier)


def train(work: Path, changes: Mapping[str, float | str], seed: str) -> Path:
    flags = [part for name, value in {"preset": "digits", **changes}.items() for part in (f"--{name}", value)]
    output = work / ("-".join([f"seed{seed}", *map(str, flags)]).replace("--", ""))
    shards, classifier = work / "shards", work / "classifier.safetensors"
    must("train", "--shards", shards, "--classifier", classifier, "--seed", seed, "--output", output, *flags)
    return output


def must(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "must", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def accuracy(bundle: Bundle, part: str) -> float:
    """Top-1 in percent."""
    images, labels = zip(*load_digits()[part], strict=True)
    pixels = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
    with torch.no_grad():
        predicted = bundle.model(normalize(pixels, get_preprocess(bundle.description))).argmax(-1)
    return (predicted == torch.tensor([CLASSES.index(label) for label in labels])).float().mean().item() * 100


if __name__ == "__main__":
    main()
