"""Names that do not fit the images: what of a class list to look at again.

Two kinds of findings:

- none: images that are like those for which people answered "none of the classes". A class may be missing.
- pair: two names that the zero-shot model gives to the same images, or whose texts are almost the same to its text
  encoder. They mean almost the same, or the model cannot tell them apart. Found without labels or answers.

How often they are right was measured on spoilt lists (docs/memory.md).

Shapes: N images, K classes, D numbers of the joint space, V numbers a vector.
"""

import logging
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from must.base.console import quieted
from must.base.text import counted, printable
from must.config import RefineConfig
from must.data.loading.loader import EvalSource
from must.method.answers.answers_file import NO_CLASS
from must.method.answers.estimate import difference
from must.method.distributed.process_group import pick_device
from must.method.memory.answers import find_answers
from must.method.memory.pool import Predicted, run_model, subsample
from must.method.memory.propagate import BLOCK_NUMBERS, RARE, propagate
from must.method.model.backbone import load_backbone
from must.method.model.bundle import untrained
from must.method.model.classifier import build_classifier, load_class_set, load_text_classifier
from must.method.model.description import get_preprocess
from must.method.model.masked_vit import MaskedViT
from must.method.model.vectors import Whitening, join_vectors, nearest, neighbour_weights

logger = logging.getLogger(__name__)

OVERLAP = 0.8  # cosine of two names' probabilities over the images
SAME_TEXT = 0.1  # 1 - cosine of two names' text embeddings, as a share of the names' median
SMALLEST = 8  # images that are enough to look for pairs
FEWEST_NONE = 2  # answers "none of the classes" that are a finding
EXAMPLES, MOST = 3, 10  # images of a finding; findings of a kind
TRIED = 2_000  # images at most that two lists are compared on
SHOWN = 10  # names, and changes of labels, in the text


@dataclass(frozen=True)
class Finding:
    """`kind`: none or pair; `images`: how many it is about; `rows`: of EXAMPLES of them, the clearest first; `answers`:
    how many besides have the answer "none of the classes"."""

    kind: str
    classes: tuple[int, ...]
    images: int
    rows: tuple[int, ...]
    answers: int = 0

    def to_dict(self, classes: list[str], sources: list[str]) -> dict[str, Any]:
        """For refined.json: classes and examples by name, and the finding in a line."""
        names, examples = [classes[k] for k in self.classes], [sources[row] for row in self.rows]
        if self.kind == "none":
            like = f"the model finds {counted(self.images, 'other image')} like them"
            text = f"{self.answers:,} images have the answer “none of the classes”, {like}: is a class missing?"
        else:
            text = (
                f"“{names[0]}” and “{names[1]}” are almost the same to the model: give them other words, or join them"
            )
        return {"kind": self.kind, "classes": names, "images": self.images, "examples": examples, "text": text}


def find_missing(labels: Predicted, answered: Tensor, none: int) -> list[Finding]:
    """The images that are most probably none of the classes, if people said so of at least FEWEST_NONE. The surest of
    those without an answer come first.

    Args:
        labels: refined, of N images.
        answered: int64 [A], the rows of images with an answer, of which `none` are "none of the classes".
    """
    if none < FEWEST_NONE:
        return []
    shown = labels.labels == NO_CLASS
    others = shown.clone()
    others[answered] = False
    order = labels.confidence + others.float()  # an answered image has a confidence of 1, another one more than 1
    rows = order.where(shown, 0.0).argsort(descending=True, stable=True)[: min(EXAMPLES, int(shown.sum()))]
    return [Finding("none", (), int(others.sum()), tuple(rows.tolist()), none)]


def find_pairs(probabilities: Tensor, columns: Tensor) -> list[Finding]:
    """Pairs of names by the cosine of their columns of probabilities [N, K], or by that of their texts [D, K]."""
    N, K = probabilities.shape
    if N < SMALLEST or float((probabilities.amax(0) - probabilities.amin(0)).max()) < RARE:
        return []  # of few images, or of those that are all alike to the model, nothing is known
    product = torch.zeros(K, K, device=probabilities.device)
    for part in probabilities.split(max(1, BLOCK_NUMBERS // K)):
        product += part.float().T @ part.float()
    length = product.diagonal().sqrt().clamp(min=1e-12)
    gap = (1 - columns.float().T @ columns.float()).clamp(min=1e-12)
    usual = gap[~torch.eye(K, dtype=torch.bool, device=gap.device)].median() if K > 2 else 0.0
    strength = torch.maximum(product / (length[:, None] * length) / OVERLAP, SAME_TEXT * usual / gap).triu(1)
    values, cells = strength.flatten().topk(min(MOST, K * K))
    findings = []
    for value, cell in zip(values.tolist(), cells.tolist(), strict=True):
        a, b = divmod(cell, K)
        if value >= 1:
            either = probabilities[:, [a, b]].float()
            rows = either.amin(1).topk(min(EXAMPLES, N)).indices
            findings.append(Finding("pair", (a, b), round(float(either.sum())), tuple(rows.tolist())))
    return findings


@torch.inference_mode()
def compare_lists(config: RefineConfig) -> dict[str, Any]:
    """`must refine WORK --classes new.txt`: two class lists on the same images, and no file. Images are run once, by
    the image tower of the zero-shot model; only the text tower is run for the new list. Only answers say which list
    fits better: how often neighbours agree also rises when a class is left out (docs/memory.md).

    `lists`: the classifier's and the new one, each {name: [images, agreement]}, and their `misfits`;
    `changed`: images with another label; `changes`: [present label, new label, images, examples]; `measured`: of the
    answers drawn at random that name a class: [their number, the share of right labels by each list, the difference and
    its 95% interval]; a class that is not in a list is wrong there. `added`: names that only the new list has, and no
    answer; then it is not said that the present list fits better."""
    class_set, classifier = load_class_set(config.classes), load_text_classifier(config.classifier)
    device, backbone = pick_device(config.device), load_backbone(*classifier.find_model())
    bundle = untrained(backbone, classifier, classifier.model, classifier.pretrained, classifier.logit_scale)
    columns = [classifier.weights, build_classifier(backbone, class_set, device)]
    source = EvalSource.open(config, get_preprocess(bundle.description))
    every, known = set(source.numbers), list(dict.fromkeys([*classifier.classes, *class_set.names]))
    with quieted(logging.ERROR, "must.method.memory.answers"):  # what it says is about `must refine`
        answers = find_answers(config, known).random
    truth = {n: known[k] for n, k in answers.items() if n in every and k >= 0}
    source.numbers = sorted({*subsample(source, min(config.images, TRIED)).numbers, *truth})
    feature, vectors, numbers, sources = read_features(bundle.model, source, device)
    near, judged = nearest(vectors), []
    for names, column in zip((classifier.classes, class_set.names), columns, strict=True):
        judged.append(judge_list(list(names), classifier.logit_scale, feature, column, vectors, near, sources))
    labels, tables, misfits = zip(*judged, strict=True)
    pairs = list(zip(*labels, strict=True))
    changes = Counter(pair for pair in pairs if pair[0] != pair[1])
    judged_by = [(pair, truth[n]) for n, pair in zip(numbers, pairs, strict=True) if n in truth]
    before, after = (np.array([pair[place] == name for pair, name in judged_by], bool) for place in range(2))
    result = {
        "images": len(sources),
        "changed": sum(changes.values()),
        "lists": list(tables),
        "misfits": list(misfits),
        "added": [name for name in class_set.names if name not in (*classifier.classes, *truth.values())],
        "measured": [len(judged_by), float(before.mean()), float(after.mean()), *difference(before, after)]
        if judged_by
        else [],
        "changes": [
            [*pair, count, [s for s, p in zip(sources, pairs, strict=True) if p == pair][:EXAMPLES]]
            for pair, count in changes.most_common(SHOWN)
        ],
    }
    logger.info(printable_table(result, config.classes))
    return result


@torch.inference_mode()
def read_features(
    model: MaskedViT, source: EvalSource, device: torch.device
) -> tuple[Tensor, Tensor, list[int], list[str]]:
    """(unit features float32 [N, D], unit vectors float32 [N, V], numbers in the split, names) of the source's images,
    kept in memory."""
    outputs = run_model(model, source, device, "predictions")
    rows = ((feature.cpu(), flat.half().cpu(), batch.samples, batch.sources) for batch, _, _, feature, flat in outputs)
    features, flats, numbers, sources = zip(*rows, strict=True)
    joined, flat = torch.cat(features), torch.cat(flats)
    vectors = join_vectors(Whitening.fit(flat)(flat), Whitening.fit(joined)(joined))
    return joined, vectors, torch.cat(numbers).tolist(), list(chain.from_iterable(sources))


def judge_list(
    names: list[str],
    logit_scale: float,
    feature: Tensor,
    columns: Tensor,
    vectors: Tensor,
    near: tuple[Tensor, Tensor],
    sources: list[str],
) -> tuple[list[str], dict[str, list[float]], list[dict[str, Any]]]:
    """(refined label of each image, {name: [images, agreement]}, misfits as of Finding.to_dict). The agreement is the
    neighbours', beyond chance: 0 for as much as chance, 1 for always. `feature`: unit [N, D]; `columns`:
    unit [D, K]; `near`: as of `nearest(vectors)`."""
    logits, weights = logit_scale * feature @ columns, neighbour_weights(near[1])
    P = logits.softmax(1)
    near_mean = torch.stack([w @ P[n] for n, w in zip(near[0], weights, strict=True)])
    mean, both = P.mean(0), P * near_mean
    agreement = (both.sum(0) / P.sum(0).clamp(min=RARE) - mean) / (1 - mean).clamp(min=RARE)
    labels = propagate(*near, P).labels.argmax(1)
    misfits = [finding.to_dict(names, sources) for finding in find_pairs(P, columns)]
    counts = labels.bincount(minlength=len(names)).tolist()
    table = {name: [count, round(a, 3)] for name, count, a in zip(names, counts, agreement.tolist(), strict=True)}
    return [names[k] for k in labels.tolist()], table, misfits


def printable_table(result: dict[str, Any], file: str) -> str:
    """The result in words: the names that differ most, the changes, and what does not fit."""
    now, new = result["lists"]
    absent = [0, 0.0]
    names = sorted(
        {**now, **new}, key=lambda n: (n in now and n in new, -abs(new.get(n, absent)[1] - now.get(n, absent)[1]))
    )
    head = "name: images, neighbours' agreement; - : not in this list"
    lines = [f"{result['images']:,} images, zero-shot; nothing is written", "", head]
    for name in names[:SHOWN]:
        cells = [f"{each[name][0]:,}, {each[name][1]:.0%}" if name in each else "-" for each in (now, new)]
        lines.append(f"  {name}: {cells[0]} -> {cells[1]}")
    if len(names) > SHOWN:
        lines.append(f"  and {counted(len(names) - SHOWN, 'name')} with smaller changes")
    lines.append(f"{counted(result['changed'], 'image')} of {result['images']:,} with another label")
    lines += [f"  {a} -> {b}: {count:,} ({', '.join(shown)})" for a, b, count, shown in result["changes"]]
    if result["measured"]:
        count, before, after, gain, low, high = result["measured"]
        worse = (
            "not decided: no answer has a name that was added" if result["added"] else "the present list fits better"
        )
        verdict = f"{file} fits better" if low > 0 else worse if high < 0 else "not decided"
        answers = f"{counted(count, 'answer')} drawn at random"
        lines.append(
            f"{verdict}: by {answers}, {before:.1%} -> {after:.1%} of the labels are right, "
            f"{100 * gain:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
        )
    else:
        lines.append("which list fits better is not known: no answer drawn at random names a class (must review)")
    for title, findings in zip(("present list", file), result["misfits"], strict=True):
        lines += [f"does not fit, {title}: {finding['text']}" for finding in findings[:EXAMPLES]]
    return "\n".join(printable(line) for line in lines)
