"""`must refine WORK --classes new.txt`: two class lists on the same images, compared without labels. Writes nothing.

Images are run once, by the image tower of the zero-shot model; only the text tower is run for the new list. No number
says which list fits better: how often neighbours agree also rises when a class is left out (docs/memory.md). N images,
K classes.
"""

import logging
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from must.base.parameters import require
from must.base.progress import watched
from must.base.text import counted, printable
from must.config import RefineConfig
from must.data.augment.normalize import normalize
from must.data.loading.loader import EvalSource
from must.method.distributed.process_group import pick_device
from must.method.memory.names import EXAMPLES, find_misfits
from must.method.memory.pool import subsample
from must.method.memory.propagate import RARE, propagate
from must.method.model.backbone import load_backbone
from must.method.model.bundle import untrained
from must.method.model.classifier import build_classifier, load_class_set, load_text_classifier
from must.method.model.description import get_preprocess
from must.method.model.folder import verified
from must.method.model.masked_vit import MaskedViT
from must.method.model.vectors import Whitening, flatten_tokens, join_vectors, nearest, neighbour_weights

logger = logging.getLogger(__name__)

TRIED = 2_000  # images at most
SHOWN = 10  # names, and changes of labels, in the text


class ClassList(NamedTuple):
    """A class list on N images."""

    names: list[str]
    labels: Tensor  # int64 [N], refined
    agreement: Tensor  # float32 [K], of the neighbours beyond chance: 0 for as much as chance, 1 for always
    misfits: list[dict[str, Any]]  # as of Finding.to_dict


@torch.inference_mode()
def compare_lists(config: RefineConfig) -> dict[str, Any]:
    """`lists`: the classifier's and the new one, each {name: [images, agreement]}, and their `misfits`;
    `changed`: images with another label; `changes`: [present label, new label, images, examples].
    Raises ValueError: no such file, split or classifier, or no image can be decoded."""
    class_set, classifier = load_class_set(config.classes), load_text_classifier(config.classifier)
    folder, device = classifier.model_folder, pick_device(config.device)
    names = classifier.model, classifier.pretrained
    backbone = load_backbone(*((verified(folder, classifier.model_sha256), "") if folder else names))
    bundle = untrained(backbone, classifier, *names, classifier.logit_scale)
    columns = [classifier.weights, build_classifier(backbone, class_set, device)]
    source = subsample(EvalSource.open(config, get_preprocess(bundle.description)), min(config.images, TRIED))
    feature, vectors, sources = read_features(bundle.model.to(device), source, device)
    near = nearest(vectors)
    now, new = (
        judge_list(list(each), classifier.logit_scale * feature @ column, vectors, near, sources)
        for each, column in zip((classifier.classes, class_set.names), columns, strict=True)
    )
    result = count_changes(now, new, sources)
    logger.info(printable_table(result, config.classes))
    return result


@torch.inference_mode()
def read_features(model: MaskedViT, source: EvalSource, device: torch.device) -> tuple[Tensor, Tensor, list[str]]:
    """(unit features float32 [N, D], unit vectors float32 [N, V], names) of the source's images, kept in memory.
    Raises ValueError: none can be decoded."""
    features, flats, sources = list[Tensor](), list[Tensor](), list[str]()
    for batch in watched(source, "predictions"):
        _, feature, tokens = model.classify(normalize(batch.pixels.to(device), source.preprocess))
        features.append(feature.float().cpu())
        flats.append(flatten_tokens(model.tower, tokens).half().cpu())
        sources += batch.sources
    require(bool(sources), "none of the split's images can be decoded; check them: must index verify")
    joined, flat = torch.cat(features), torch.cat(flats)
    return joined, join_vectors(Whitening.fit(flat)(flat), Whitening.fit(joined)(joined)), sources


def judge_list(
    names: list[str], logits: Tensor, vectors: Tensor, near: tuple[Tensor, Tensor], sources: list[str]
) -> ClassList:
    """`logits`: float32 [N, K]; `vectors`, `near`: as of `nearest`."""
    P, weights = logits.softmax(1), neighbour_weights(near[1])
    near_mean = torch.stack([w @ P[n] for n, w in zip(near[0], weights, strict=True)])
    mean, both = P.mean(0), P * near_mean
    agreement = (both.sum(0) / P.sum(0).clamp(min=RARE) - mean) / (1 - mean).clamp(min=RARE)
    labels = propagate(*near, P).labels.argmax(1)
    misfits = [f.to_dict(names, sources) for f in find_misfits(P, logits.amax(1), vectors, near)]
    return ClassList(names, labels, agreement, misfits)


def count_changes(now: ClassList, new: ClassList, sources: list[str]) -> dict[str, Any]:
    pairs = [
        (now.names[a], new.names[b]) for a, b in zip(now.labels.tolist(), new.labels.tolist(), strict=True)
    ]  # fmt: skip
    changes = Counter(pair for pair in pairs if pair[0] != pair[1])
    tables = [
        {name: [int((each.labels == k).sum()), round(float(each.agreement[k]), 3)] for k, name in enumerate(each.names)}
        for each in (now, new)
    ]
    return {
        "images": len(sources),
        "changed": sum(changes.values()),
        "lists": tables,
        "misfits": [now.misfits, new.misfits],
        "changes": [
            [*pair, count, [s for s, p in zip(sources, pairs, strict=True) if p == pair][:EXAMPLES]]
            for pair, count in changes.most_common(SHOWN)
        ],
    }


def printable_table(result: dict[str, Any], file: str) -> str:
    """The result in words: the names that differ most, the changes, and what does not fit."""
    now, new = result["lists"]
    absent = [0, 0.0]
    names = sorted(
        {**now, **new}, key=lambda n: (n in now and n in new, -abs(new.get(n, absent)[1] - now.get(n, absent)[1]))
    )
    lines = [f"{result['images']:,} images, zero-shot; nothing is written", "", "name: images, neighbours' agreement"]
    for name in names[:SHOWN]:
        cells = [f"{each[name][0]:,}, {each[name][1]:.0%}" if name in each else "-" for each in (now, new)]
        lines.append(f"  {name}: {cells[0]} -> {cells[1]}")
    if len(names) > SHOWN:
        lines.append(f"  and {len(names) - SHOWN} names that change less")
    lines.append(f"{counted(result['changed'], 'image')} of {result['images']:,} with another label")
    lines += [f"  {a} -> {b}: {count:,} ({', '.join(shown)})" for a, b, count, shown in result["changes"]]
    for title, findings in zip(("present list", file), result["misfits"], strict=True):
        lines += [f"does not fit, {title}: {finding['text']}" for finding in findings[:EXAMPLES]]
    return "\n".join(printable(line) for line in lines)
