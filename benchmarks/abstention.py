"""What the threshold for naming no class is worth: its promise against the labels, and pictures of other classes.

    python benchmarks/abstention.py --model model/ --baseline classifier.safetensors --shards shards/ --split test

Labels are only looked at to measure. `hidden` asks what happens to pictures of classes that the model does not know: of
each class in turn the column is taken out of the probabilities, and the threshold that look-alikes chose without that
class's pictures meets them.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from must.config import EvaluateConfig
from must.data.loading.loader import EvalSource
from must.data.loading.reader import open_reader
from must.evaluation.abstention import at, with_labels
from must.evaluation.audit import ladder_predictions
from must.evaluation.evaluate import load_baseline, load_bundle
from must.evaluation.scores import score_split
from must.method.distributed.process_group import init_distributed
from must.method.model.bundle import preprocess_of
from must.method.select.abstain import by_look_alikes
from must.method.select.neighbours import look_alikes

TARGETS = (0.02, 0.05, 0.1, 0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "baseline", "shards"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    config = EvaluateConfig(**vars(options), output="unused", workers=0)
    with init_distributed("auto", 600) as here:
        bundle, baseline = load_bundle(config.model), load_baseline(config.baseline)
        looks = ladder_predictions(config, bundle, baseline, here)
        assert looks is not None, "too few images"
        preprocess = preprocess_of(bundle.description)
        source = EvalSource(open_reader(config.shards, config.split), preprocess, config.batch_size, 0)
        samples, _ = score_split([bundle.model], source, bundle.description.classes, here)
    labels = samples.labels[np.isin(samples.numbers, looks.numbers)]
    neighbours, originals = look_alikes(looks.tokens)
    labels, kept = labels[originals], looks.only(originals)
    for number, name in ((0, "zero-shot"), (-1, "adapted")):
        probabilities = kept.probabilities[number].astype(np.float32)
        report(name, probabilities, kept.labels[number], neighbours, labels)
        hidden(name, probabilities, kept.tokens, labels, bundle.description.classes)


def report(name, probabilities, predicted, neighbours, labels):
    confidence, correct = probabilities.max(axis=1), predicted == labels
    print(f"\n{name}: {len(labels)} images, {100 * (~correct).mean():.1f}% wrong if all are named")
    print(
        "| target | by look-alikes: threshold | named | estimated wrong | really wrong | by labels: threshold | named |"
    )
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for target in TARGETS:
        free, known = (
            by_look_alikes(probabilities, predicted, neighbours, 1.0, target),
            with_labels(confidence, correct, target),
        )
        row = [f"{target:.0%}", *["-"] * 4, *["-"] * 2]
        if free["threshold"] is not None:
            truth = at(free["threshold"], confidence, correct)
            row[1:5] = [
                f"{free['threshold']:.3f}",
                *(f"{100 * x:.1f}%" for x in (truth["coverage"], free["risk"], truth["risk"])),
            ]
        if known["threshold"] is not None:
            row[5:] = [f"{known['threshold']:.3f}", f"{100 * known['coverage']:.1f}%"]
        print("| " + " | ".join(row) + " |")


def hidden(name, probabilities, tokens, labels, classes):
    strangers, others, wrong = [], [], []
    for number in range(len(classes)):
        left = np.delete(probabilities, number, axis=1)
        left /= left.sum(axis=1, keepdims=True)
        inside = labels != number
        neighbours, originals = look_alikes(tokens[inside])
        known = left[inside][originals]
        found = by_look_alikes(known, known.argmax(axis=1), neighbours, 1.0)
        threshold = found["threshold"]
        if threshold is None:
            continue
        strangers.append((left[~inside].max(axis=1) < threshold).mean())
        named = left[inside].max(axis=1) >= threshold
        truth = labels[inside] - (labels[inside] > number)
        others.append(named.mean())
        wrong.append((left[inside].argmax(axis=1) != truth)[named].mean())
    print(
        f"{name}, a class hidden at a time ({len(strangers)} of {len(classes)} had a threshold, target 5%): of its "
        "pictures "
        f"{100 * np.mean(strangers):.0f}% get no name; of the others {100 * np.mean(others):.0f}% are named, "
        f"{100 * np.mean(wrong):.1f}% of those wrongly"
    )


if __name__ == "__main__":
    main()
