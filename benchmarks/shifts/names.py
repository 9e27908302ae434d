"""Names that do not fit: spoilt class lists of the panel, and how many are found.

    python -m benchmarks.shifts.names --tasks digits signs

Per task: the right list; and SPOILT times each a synonym (a column at 5% or 15% of the usual distance between names), a
class left out, a name without images, and a name replaced by one without images. *Found*: a finding is about what was
spoilt. *False*: a group of classes in the list, a quarter of its labels right; a pair that the refined labels part
in 80% of its images.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.shifts.families import ROOT
from benchmarks.shifts.run import prepare, truth
from benchmarks.shifts.tasks import DEVELOPMENT, HELD_OUT, VARIANTS, task, variant
from must.data.loading.loader import EvalSource
from must.data.loading.reader import open_reader
from must.method.memory.names import Finding, find_misfits, make_groups, read_features
from must.method.memory.propagate import propagate
from must.method.model.bundle import zero_shot_bundle
from must.method.model.classifier import load_text_classifier
from must.method.model.description import get_preprocess
from must.method.model.vectors import nearest

SPOILT, GAPS = 4, (0.05, 0.15)
NEW = -2  # the number of a column that is no class


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=DEVELOPMENT, choices=(*DEVELOPMENT, *HELD_OUT))
    parser.add_argument("--variant", default="as-is", choices=VARIANTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lists, hits, false = Counter[str](), Counter[str](), Counter[str]()
    for name in options.tasks:
        data = variant(task(name), name, options.variant)
        shards, file = prepare(ROOT / "work" / f"{name}.{options.variant}.0", data)
        classifier = load_text_classifier(file)
        bundle = zero_shot_bundle(classifier)
        source = EvalSource(open_reader(shards, "train"), get_preprocess(bundle.description), 256, 0)
        feature, vectors, _ = read_features(bundle.model, source, torch.device("cpu"))
        hidden = torch.tensor(truth(shards, "train", data.hidden))
        for kind, rows, numbers, columns, target in spoil(classifier.weights, hidden):
            logits = classifier.logit_scale * feature[rows] @ columns
            verdicts = judge(logits, columns, vectors[rows], hidden[rows], numbers, target)
            lists[kind] += 1
            hits[kind] += "found" in verdicts
            false[kind] += "false" in verdicts
    for kind, count in lists.items():
        print(f"{kind:12} {count:3} lists, {hits[kind]:3} found, {false[kind]:3} with a false finding")


def spoil(weights: Tensor, hidden: Tensor) -> Iterator[tuple[str, Tensor, list[int], Tensor, set[int]]]:
    """(kind, images, class numbers of the columns, columns, the spoilt numbers) of lists from `weights` [D, K]."""
    rng, classes, images = np.random.default_rng(7), list(range(weights.shape[1])), torch.arange(len(hidden))
    yield "right", images, classes, weights, set()
    frequent = [k for k in classes if (hidden == k).sum() >= max(8, 0.3 * len(hidden) / len(classes))]
    usual = 1 - float((weights.T @ weights)[~torch.eye(len(classes), dtype=torch.bool)].median())
    for number, a in enumerate(rng.permutation(frequent)[:SPOILT].tolist()):
        b = int(rng.choice([k for k in frequent if k != a]))
        others, without = [k for k in classes if k != a], images[hidden != b]
        cosine = 1 - GAPS[number % len(GAPS)] * usual
        aside = weights @ torch.from_numpy(rng.normal(size=len(classes))).float()
        aside = torch.nn.functional.normalize(aside - (aside @ weights[:, a]) * weights[:, a], dim=0)
        synonym = cosine * weights[:, a] + (1 - cosine**2) ** 0.5 * aside
        yield "synonym", images, [*classes, NEW], torch.cat([weights, synonym[:, None]], 1), {a, NEW}
        yield "left out", images, others, weights[:, others], {a}
        yield "no images", without, classes, weights, {b}
        yield "wrong name", without, others, weights[:, others], {a, b}


def judge(
    logits: Tensor, columns: Tensor, vectors: Tensor, hidden: Tensor, numbers: list[int], target: set[int]
) -> set[str]:
    """Of what there is of found, false and other among the findings."""
    P, near = logits.softmax(1), nearest(vectors)
    labels = propagate(*near, P).labels.argmax(1)
    group = (vectors @ make_groups(vectors, len(numbers)).T).argmax(1)
    refined = torch.tensor(numbers)[labels]

    def judge_one(finding: Finding) -> str:
        about = [numbers[k] for k in finding.classes]
        if finding.kind == "group":
            inside = group == group[finding.rows[0]]
            missing = ~torch.isin(hidden[inside], torch.tensor(numbers))
            right = (refined == hidden)[inside].float().mean()
            return ("found" if target else "other") if missing.float().mean() >= 0.5 else rate(right, 0.25)
        if target & set(about) and (NEW not in target or target == set(about)):
            return "found"
        recalls = [
            (refined == k)[(hidden == k) & torch.isin(refined, torch.tensor(about))].float().mean() for k in about
        ]
        return rate(torch.stack(recalls).nanmean(), 0.8)

    return {judge_one(finding) for finding in find_misfits(P, columns, logits.amax(1), vectors, near)}


def rate(share: Tensor, limit: float) -> str:
    return "false" if share >= limit else "other"


if __name__ == "__main__":
    main()
