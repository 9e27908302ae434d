"""Weight interpolation: the model is a point between zero-shot's weights and the adapted ones (WiSE-FT, 2109.01903).

`must train` keeps the share `--alpha` of the way and puts all of the adaptation beside it, in OUTPUT/adapted; `must
select` makes a model of another share from the same two ends.
"""

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from must.base import storage
from must.base.files import ADAPTED, DESCRIPTION_FILE
from must.base.parameters import require
from must.base.progress import watched
from must.config import SelectConfig
from must.data.augment.normalize import normalize
from must.data.format.index import load_index
from must.data.loading.loader import EvalSource
from must.method.answers.estimate import Measured, difference
from must.method.answers.review import Review
from must.method.distributed.process_group import init_distributed
from must.method.model.bundle import (
    LOG_FILE,
    Bundle,
    Description,
    have_one_shape,
    load_bundle,
    preprocess_of,
    save_bundle,
    zero_shot_bundle,
)
from must.method.model.classifier import load_text_classifier
from must.method.model.folder import Kept
from must.method.model.masked_vit import MaskedViT
from must.method.select.check import IMAGES, Check, Predicted
from must.method.select.features import extract_features, subsample

logger = logging.getLogger(__name__)

ALPHA = 0.5  # WiSE-FT's own default
TRIED = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # where labels or answers choose
CLASSIFIES = ("visual.", "classifier")  # the other weights serve training, and zero-shot has none of its own

Weights = dict[str, Tensor]


def select(config: SelectConfig) -> Description:
    """The stage: writes a bundle with the share `alpha` of an adaptation, and a check of it in its provenance.

    Raises:
        ValueError: no bundle, no such split, or a classifier file of other classes or of another model.
    """
    model = adapted_end(config.model)
    bundle, zero_shot = both_ends(model, config.baseline)
    description = bundle.description
    with init_distributed(config.device, timeout=600) as here:
        require(here.size == 1, "must select runs in one process")
        frozen = start_of(bundle, zero_shot)
        start, end = frozen.state_dict(), {**bundle.model.state_dict()}
        alpha, record = choose(config, bundle, frozen, here.device)
        network = start_of(bundle, zero_shot)
        network.load_state_dict(between(start, end, alpha))
        source = subsample(EvalSource.of(config, preprocess_of(description)), IMAGES)
        check = check_model(frozen, network, source, here.device, description.classes, zero_shot.encoder)
        description = with_selection(description, alpha, check, **record)
        save_bundle(config.output, network, description)
    copy_log(config.model, config.output)
    logger.info("\n".join([f"alpha {alpha:g} ({record['by']}) -> {config.output}", *check_lines(check)]))
    return description


def adapted_end(model: str) -> str:
    """The bundle with all of an adaptation, which training keeps beside one that has only a part of it."""
    whole = storage.join(model, ADAPTED)
    return whole if storage.exists(storage.join(whole, DESCRIPTION_FILE)) else model


def choose(
    config: SelectConfig, bundle: Bundle, frozen: MaskedViT, device: torch.device
) -> tuple[float, dict[str, Any]]:
    """(alpha, what the bundle records of the choice)."""
    if config.alpha != "auto":
        return config.alpha, {"by": "--alpha"}
    labels, split = known_labels(config, bundle.description)
    if not labels:
        return ALPHA, {"by": "the default"}
    source = EvalSource.of(config, preprocess_of(bundle.description), split=split)
    source.numbers = sorted(labels)
    correct = correct_at(frozen, bundle.model, source, labels, device)
    alpha = best_alpha(correct)
    measured = Measured.of(*(correct[TRIED.index(one)] for one in (0.0, alpha)))
    what = "answers" if config.answers else f"labels of {split}"
    return alpha, {"by": f"{len(labels):,} {what}", "measured": measured.to_dict()}


def known_labels(config: SelectConfig, description: Description) -> tuple[dict[int, int], str]:
    """({number in the split: class number}, the split) of the answers or the labelled split that alpha is chosen by."""
    if config.answers:
        review = Review.load(config.answers)
        review.require(description.classes, load_index(config.shards).sha256, f"--answers {config.answers}")
        pictures, labels = review.truth(review.answers(config.answers), drawn=True)
        why = "there are no answers yet about pictures that were drawn at random, and others measure nothing"
        require(bool(pictures), f"--answers {config.answers}: {why}")
        return {picture.number: int(label) for picture, label in zip(pictures, labels, strict=True)}, review.split
    if not config.labelled:
        return {}, ""
    reader = EvalSource.of(config, preprocess_of(description), split=config.labelled).reader
    numbers = {name: number for number, name in enumerate(description.classes)}
    texts = [reader.description(sample).get("label") for sample in range(len(reader))]
    labels = {sample: numbers[text] for sample, text in enumerate(texts) if text in numbers}
    require(bool(labels), f"--labelled {config.labelled}: none of its images has a label that is one of the classes")
    return labels, config.labelled


@torch.inference_mode()
def correct_at(
    frozen: MaskedViT, adapted: MaskedViT, source: EvalSource, labels: dict[int, int], device: torch.device
) -> np.ndarray:
    """Bool [len(TRIED), A]: whether the model at each share of the way is right about the source's images."""
    start = {name: value.to(device) for name, value in frozen.state_dict().items()}
    end = {name: value.to(device) for name, value in adapted.state_dict().items()}
    moving = copy.deepcopy(frozen).to(device).eval()
    rows = []
    for batch in watched(source, "alpha"):
        images = normalize(batch.pixels.to(device), source.preprocess)
        truth = torch.tensor([labels[number] for number in batch.samples.tolist()])
        row = []
        for alpha in TRIED:
            moving.load_state_dict(between(start, end, alpha))
            row.append(moving(images).argmax(1).cpu() == truth)
        rows.append(torch.stack(row))
    require(bool(rows), "none of the labelled images can be decoded")
    return torch.cat(rows, 1).numpy()


def best_alpha(correct: np.ndarray) -> float:
    """Of bool [len(TRIED), A], whether each share of the way is right: the most accurate one, but ALPHA unless the
    difference from it is more than its standard error."""
    best = int(correct.mean(1).argmax())
    return TRIED[best] if difference(correct[TRIED.index(ALPHA)], correct[best], z=1).low > 0 else ALPHA


def both_ends(model: str, baseline: str) -> tuple[Bundle, Bundle]:
    """(the adapted model, zero-shot), between which weights are interpolated.

    Raises:
        ValueError: no bundle, or a classifier file of other classes or of another model.
    """
    bundle, classifier = load_bundle(model), load_text_classifier(baseline)
    ours, theirs = bundle.description, list(classifier.classes)
    require(
        ours.classes == theirs,
        f"--baseline {baseline}: has other classes ({len(theirs)}) than the model ({len(ours.classes)}); take "
        "the classifier file that the model was trained with",
    )
    zero_shot = zero_shot_bundle(classifier)
    require(
        have_one_shape(bundle, zero_shot),
        f"--baseline {baseline}: is of {zero_shot.description.backbone}, the model is a {ours.backbone} of "
        "another shape; take the classifier file that the model was trained with",
    )
    return bundle, zero_shot


def start_of(bundle: Bundle, zero_shot: Bundle) -> MaskedViT:
    """Zero-shot with the adapted model's logit factor, and its weights where they serve training alone. A network of
    its own."""
    frozen = MaskedViT(copy.deepcopy(zero_shot.model.visual), zero_shot.model.classifier, bundle.model.logit_factor)
    frozen.load_state_dict(start_weights(zero_shot.model.state_dict(), bundle.model.state_dict()))
    return frozen.eval()


def start_weights(zero_shot: Weights, adapted: Weights) -> Weights:
    """Zero-shot's weights, but the adapted ones where they serve training alone: decoder, mask token, patch norm."""
    return zero_shot | {name: value for name, value in adapted.items() if not name.startswith(CLASSIFIES)}


def between(start: Weights, end: Weights, alpha: float) -> Weights:
    """start + alpha (end - start); at 0 and 1 the very bits of the two."""
    if alpha in (0, 1):
        return end if alpha else start
    return {
        name: torch.lerp(value, end[name].to(value), alpha) if value.is_floating_point() else value
        for name, value in start.items()
    }


def check_model(
    zero_shot: MaskedViT,
    model: MaskedViT,
    source: EvalSource,
    device: torch.device,
    classes: list[str],
    encoder: Kept | None = None,
    pause: Callable[[], None] | None = None,
) -> Check:
    """Checks a model on the images of `source`. `pause` is called before every batch; it may raise to stop."""
    seen = extract_features([zero_shot, model], source, device, encoder, pause)
    before, after = (Predicted.of(one) for one in seen.probabilities)
    return Check.of(seen.features, before, after, classes)


def with_selection(description: Description, alpha: float, check: Check, **record: Any) -> Description:
    """The bundle's description with the share that was kept, why, and the check."""
    selection = {"alpha": alpha, **record, "check": check.to_dict()}
    return replace(description, provenance={**description.provenance, "selection": selection})


def check_lines(check: Check) -> list[str]:
    """For the log."""
    return [check.text(), *(f"warning: {reason}" for reason in check.warnings)]


def copy_log(model: str, output: str) -> None:
    """The training log goes with the weights."""
    log = storage.join(model, LOG_FILE)
    if storage.exists(log) and log != storage.join(output, LOG_FILE):
        storage.write_bytes(storage.join(output, LOG_FILE), storage.read_bytes(log))
