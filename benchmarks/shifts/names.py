"""Names that do not fit: spoilt class lists of the panel, and how many are found.

    python -m benchmarks.shifts.names --tasks digits signs

Per task: the right list; and SPOILT times each a synonym (a column at 5% or 15% of the usual distance between names), a
class left out, and a name replaced by one without images. *Found*: a finding is about what was spoilt. *False*: a pair
that the refined labels part in 80% of its images; or images like those answered with "none of the classes", less than
half of which are of none. Answers are right, and in the order of `must review`.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.shifts.families import ROOT
from benchmarks.shifts.run import order_review, prepare, truth
from benchmarks.shifts.tasks import DEVELOPMENT, HELD_OUT, VARIANTS, task, variant
from must.data.loader import EvalSource
from must.data.reader import open_reader
from must.method.distributed import World
from must.method.memory.features import read_features
from must.method.memory.predictions import Finding, TopLabels, find_missing, find_pairs
from must.method.memory.propagate import refine_probabilities
from must.method.model.bundle import make_zero_shot_bundle
from must.method.model.classifier import load_text_classifier
from must.method.model.description import get_preprocess
from must.method.model.memory import find_nearest_groups

SPOILT, GAPS, ANSWERS = 4, (0.05, 0.15), (0, 60, 120, 240)
NEW = -2  # the number of a column that is no class


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=DEVELOPMENT, choices=(*DEVELOPMENT, *HELD_OUT))
    parser.add_argument("--variant", default="as-is", choices=VARIANTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lists, hits, false, shares = Counter[str](), Counter[str](), Counter[str](), dict[str, list[list[float]]]()
    for name in options.tasks:
        data = variant(task(name), name, options.variant)
        shards, file = prepare(ROOT / "work" / f"{name}.{options.variant}.0", data)
        classifier = load_text_classifier(file)
        bundle = make_zero_shot_bundle(classifier)
        source = EvalSource(open_reader(shards, "train"), get_preprocess(bundle.description), 256, 0)
        features = read_features(bundle.model, source, World(0, 1, torch.device("cpu")))
        feature, vectors = features.embedding.float(), features.vectors.float()
        hidden = torch.tensor(truth(shards, "train", data.hidden))
        for kind, numbers, columns, target in spoil(classifier.weights, hidden):
            P = (classifier.logit_scale * feature @ columns).softmax(1)
            for answers in ANSWERS:
                verdicts, measured = judge(P, columns, vectors, hidden, numbers, target, answers)
                row = f"{kind:12} {answers:3} answers"
                lists[row] += 1
                hits[row] += "found" in verdicts
                false[row] += "false" in verdicts
                shares.setdefault(row, []).append(measured)
    for row, count in lists.items():
        right, none, wrong = np.mean(shares[row], 0)
        print(
            f"{row} {count:3} lists, {hits[row]:3} found, {false[row]:3} with a false finding; right {right:.1%}, "
            f"none {none:.0%} and {wrong:.1%}"
        )


def spoil(weights: Tensor, hidden: Tensor) -> Iterator[tuple[str, list[int], Tensor, set[int]]]:
    """(kind, class numbers of the columns, columns, the spoilt numbers) of lists from `weights` [D, K]."""
    rng, classes = np.random.default_rng(7), list(range(weights.shape[1]))
    yield "right", classes, weights, set()
    frequent = [k for k in classes if (hidden == k).sum() >= max(8, 0.3 * len(hidden) / len(classes))]
    usual = 1 - float((weights.T @ weights)[~torch.eye(len(classes), dtype=torch.bool)].median())
    for number, a in enumerate(rng.permutation(frequent)[:SPOILT].tolist()):
        others = [k for k in classes if k != a]
        cosine = 1 - GAPS[number % len(GAPS)] * usual
        aside = weights @ torch.from_numpy(rng.normal(size=len(classes))).float()
        aside = torch.nn.functional.normalize(aside - (aside @ weights[:, a]) * weights[:, a], dim=0)
        synonym = cosine * weights[:, a] + (1 - cosine**2) ** 0.5 * aside
        wrong = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=len(aside))).float(), dim=0)
        yield "synonym", [*classes, NEW], torch.cat([weights, synonym[:, None]], 1), {a, NEW}
        yield "left out", others, weights[:, others], {a}
        yield "wrong name", [*others, NEW], torch.cat([weights[:, others], wrong[:, None]], 1), {a}


def judge(
    probabilities: Tensor,
    columns: Tensor,
    vectors: Tensor,
    hidden: Tensor,
    numbers: list[int],
    target: set[int],
    answers: int,
) -> tuple[set[str], list[float]]:
    """(of what there is of found, false and other among the findings; the shares right, none, none of the others)."""
    P = probabilities
    near, listed = find_nearest_groups(vectors), {number: row for row, number in enumerate(numbers)}
    real = torch.tensor([listed.get(number, -1) for number in hidden.tolist()])
    answered = order_review(vectors, P, answers)
    given = torch.stack([answered, real[answered]])
    labels = TopLabels.from_probabilities(refine_probabilities(near, P, vectors, given).labels[:, : P.shape[1]])
    none = labels.labels == -1
    none[answered] = False

    def judge_one(finding: Finding) -> str:
        if finding.kind == "none":
            return "false" if none.any() and (real[none] == -1).float().mean() < 0.5 else "found"
        about = {numbers[k] for k in finding.classes}
        if target & about and (NEW not in about or target == about):
            return "found"
        both = torch.isin(labels.labels, torch.tensor(finding.classes))
        recalls = [(labels.labels == k)[(real == k) & both].float().mean() for k in finding.classes]
        return "false" if torch.stack(recalls).nanmean() >= 0.8 else "other"

    findings = [*find_missing(labels, answered, int((given[1] < 0).sum())), *find_pairs(P, columns)]
    others = torch.ones(len(real), dtype=torch.bool)
    others[answered] = False
    parts = (labels.labels == real)[others], none[others & (real < 0)], none[others & (real >= 0)]
    return {judge_one(finding) for finding in findings}, [
        float(part.float().mean()) if len(part) else 0.0 for part in parts
    ]


if __name__ == "__main__":
    main()
