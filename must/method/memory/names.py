"""Names that do not fit the images, found without labels: what of a class list to look at again.

Two kinds of findings, both from one pass of the zero-shot model over the unlabeled images:

- group: similar images that are less similar to every name than images usually are. A class may be missing.
- pair: two names that the model gives to the same images, or whose texts are almost the same to its text encoder. They
  mean almost the same, or the model cannot tell them apart.

How often they are right was measured on spoilt lists (docs/memory.md).

Shapes: N images, K classes, D numbers of the joint space, C neighbours of an image, V numbers a vector, G groups.
"""

import logging
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from must.base.text import counted, printable
from must.config import RefineConfig
from must.data.loading.loader import EvalSource
from must.method.distributed.process_group import pick_device
from must.method.memory.pool import run_model, subsample
from must.method.memory.propagate import BLOCK_NUMBERS, RARE, propagate
from must.method.model.backbone import load_backbone
from must.method.model.bundle import untrained
from must.method.model.classifier import build_classifier, load_class_set, load_text_classifier
from must.method.model.description import get_preprocess
from must.method.model.masked_vit import MaskedViT
from must.method.model.vectors import Whitening, join_vectors, nearest, neighbour_weights

logger = logging.getLogger(__name__)

MISFIT = 1.25  # standard deviations of the images' best cosine, times the group's coherence
OVERLAP = 0.8  # cosine of two names' probabilities over the images
SAME_TEXT = 0.1  # 1 - cosine of two names' text embeddings, as a share of the names' median
GROUPS_A_NAME = 2
SMALLEST_GROUP, MEAN_GROUP = 8, 15  # images: that a finding is about, and of the groups at least on average
GROUPED, GROUP_ROUNDS = 10_000, 15  # images that the groups are made from; rounds of k-means
EXAMPLES, MOST = 3, 10  # images of a finding; findings of a kind
TRIED = 2_000  # images at most that two lists are compared on
SHOWN = 10  # names, and changes of labels, in the text


@dataclass(frozen=True)
class Finding:
    """`kind`: group or pair; `images`: how many it is about; `rows`: of EXAMPLES of them, the clearest first;
    `strength`: the measure divided by its limit, 1 or more."""

    kind: str
    classes: tuple[int, ...]
    images: int
    rows: tuple[int, ...]
    strength: float

    def to_dict(self, classes: list[str], sources: list[str]) -> dict[str, Any]:
        """For refined.json: classes and examples by name, and the finding in a line."""
        names, examples = [classes[k] for k in self.classes], [sources[row] for row in self.rows]
        if self.kind == "group":
            text = f"{self.images:,} similar images fit none of the names well: is a class missing?"
        else:
            text = (
                f"“{names[0]}” and “{names[1]}” are almost the same to the model: give them other words, or join them"
            )
        return {"kind": self.kind, "classes": names, "images": self.images, "examples": examples, "text": text}


def find_misfits(
    probabilities: Tensor, columns: Tensor, fit: Tensor, vectors: Tensor, near: tuple[Tensor, Tensor]
) -> list[Finding]:
    """The strongest finding of each kind first, then the second ones, and so on.

    Args:
        probabilities: [N, K], of the zero-shot model.
        columns: [D, K], unit text embeddings of the names.
        fit: float32 [N], the largest logit of each image.
        vectors: [N, V], unit vectors.
        near: as of `nearest(vectors)`.
    """
    P, fit = probabilities.to(vectors.device), fit.to(vectors.device)
    kinds = find_groups(fit, vectors, near, P.shape[1]), find_pairs(P, columns.to(P.device))
    ranked = [(rank, finding) for kind in kinds for rank, finding in enumerate(kind[:MOST])]
    return [finding for _, finding in sorted(ranked, key=lambda pair: pair[0])]


def find_groups(fit: Tensor, vectors: Tensor, near: tuple[Tensor, Tensor], names: int) -> list[Finding]:
    """Groups whose mean fit is far below the median of the groups, and whose neighbours are in the group as well."""
    weights = neighbour_weights(near[1])
    centres = make_groups(vectors, names)
    parts = [(part.float() @ centres.T).max(1) for part in vectors.split(GROUPED)]
    group, closeness = (torch.cat(values) for values in zip(*((p.indices, p.values) for p in parts), strict=True))
    sizes = group.bincount(minlength=len(centres)).float()

    def average(values: Tensor) -> Tensor:
        return torch.zeros_like(sizes).index_add_(0, group, values) / sizes.clamp(min=1)

    coherence = average((weights * (group[near[0]] == group[:, None])).sum(1))
    enough, means = sizes >= SMALLEST_GROUP, average(fit)
    if int(enough.sum()) < 3:  # no median to compare with
        return []
    strength = (means[enough].median() - means) / fit.std().clamp(min=1e-12) * coherence / MISFIT
    findings = []
    for g in torch.where(enough, strength, 0).argsort(descending=True, stable=True).tolist():
        if strength[g] < 1 or not enough[g]:
            break
        clearest = torch.where(group == g, closeness, -torch.inf).topk(EXAMPLES).indices
        findings.append(Finding("group", (), int(sizes[g]), tuple(clearest.tolist()), float(strength[g])))
    return findings


def make_groups(vectors: Tensor, names: int) -> Tensor:
    """Float32 [G, V], the unit centres of k-means on at most GROUPED images at even intervals."""
    rows = torch.linspace(0, len(vectors) - 1, min(len(vectors), GROUPED), device=vectors.device).long()
    sample, generator = vectors[rows].float(), torch.Generator().manual_seed(0)
    first = 0
    centres, distance = [sample[first]], 1 - sample @ sample[first]
    for _ in range(max(1, min(GROUPS_A_NAME * names, len(sample) // MEAN_GROUP)) - 1):  # k-means++
        first = int(torch.multinomial(distance.clamp(min=1e-6).square().cpu(), 1, generator=generator))
        centres.append(sample[first])
        distance = torch.minimum(distance, 1 - sample @ sample[first])
    values = torch.stack(centres)
    for _ in range(GROUP_ROUNDS):
        values = F.normalize(torch.zeros_like(values).index_add_(0, (sample @ values.T).argmax(1), sample), dim=1)
    return values


def find_pairs(probabilities: Tensor, columns: Tensor) -> list[Finding]:
    """Pairs of names by the cosine of their columns of probabilities [N, K], or by that of their texts [D, K]."""
    N, K = probabilities.shape
    if N < SMALLEST_GROUP:
        return []
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
            findings.append(Finding("pair", (a, b), round(float(either.sum())), tuple(rows.tolist()), value))
    return findings


@torch.inference_mode()
def compare_lists(config: RefineConfig) -> dict[str, Any]:
    """`must refine WORK --classes new.txt`: two class lists on the same images, compared without labels, and no file.
    Images are run once, by the image tower of the zero-shot model; only the text tower is run for the new list. No
    number says which list fits better: how often neighbours agree also rises when a class is left out (docs/memory.md).

    `lists`: the classifier's and the new one, each {name: [images, agreement]}, and their `misfits`;
    `changed`: images with another label; `changes`: [present label, new label, images, examples]."""
    class_set, classifier = load_class_set(config.classes), load_text_classifier(config.classifier)
    device, backbone = pick_device(config.device), load_backbone(*classifier.find_model())
    bundle = untrained(backbone, classifier, classifier.model, classifier.pretrained, classifier.logit_scale)
    columns = [classifier.weights, build_classifier(backbone, class_set, device)]
    source = subsample(EvalSource.open(config, get_preprocess(bundle.description)), min(config.images, TRIED))
    feature, vectors, sources = read_features(bundle.model, source, device)
    near, judged = nearest(vectors), []
    for names, column in zip((classifier.classes, class_set.names), columns, strict=True):
        judged.append(judge_list(list(names), classifier.logit_scale, feature, column, vectors, near, sources))
    labels, tables, misfits = zip(*judged, strict=True)
    pairs = list(zip(*labels, strict=True))
    changes = Counter(pair for pair in pairs if pair[0] != pair[1])
    result = {
        "images": len(sources),
        "changed": sum(changes.values()),
        "lists": list(tables),
        "misfits": list(misfits),
        "changes": [
            [*pair, count, [s for s, p in zip(sources, pairs, strict=True) if p == pair][:EXAMPLES]]
            for pair, count in changes.most_common(SHOWN)
        ],
    }
    logger.info(printable_table(result, config.classes))
    return result


@torch.inference_mode()
def read_features(model: MaskedViT, source: EvalSource, device: torch.device) -> tuple[Tensor, Tensor, list[str]]:
    """(unit features float32 [N, D], unit vectors float32 [N, V], names) of the source's images, kept in memory."""
    outputs = run_model(model, source, device, "predictions")
    rows = ((feature.cpu(), flat.half().cpu(), batch.sources) for batch, _, _, feature, flat in outputs)
    features, flats, sources = zip(*rows, strict=True)
    joined, flat = torch.cat(features), torch.cat(flats)
    vectors = join_vectors(Whitening.fit(flat)(flat), Whitening.fit(joined)(joined))
    return joined, vectors, list(chain.from_iterable(sources))


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
    misfits = [f.to_dict(names, sources) for f in find_misfits(P, columns, logits.amax(1), vectors, near)]
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
    for title, findings in zip(("present list", file), result["misfits"], strict=True):
        lines += [f"does not fit, {title}: {finding['text']}" for finding in findings[:EXAMPLES]]
    return "\n".join(printable(line) for line in lines)
