"""Keep as much of an adaptation as the unlabeled images speak for: `must select`, and the end of `must train`."""

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from must.base import storage
from must.base.files import WEIGHTS_FILE
from must.base.parameters import require
from must.config import SelectConfig
from must.data.loading.loader import EvalSource
from must.method.answers.decided import Decided, decided
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
from must.method.select.alpha import Choice, choose_alpha, shares_of, unsure_at
from must.method.select.ladder import RUNGS
from must.method.select.rung_predictions import MAX_IMAGES, RungPredictions, Weights, between, predict_rungs, subsample
from must.method.select.tokens import TOWER
from must.method.select.undecided import decided_by

logger = logging.getLogger(__name__)

CLASSIFIES = ("visual.", "classifier")  # the other weights serve training, and zero-shot has none of its own


def select(config: SelectConfig) -> Choice:
    """The stage: audits a bundle against its zero-shot model and writes the bundle that may be used.

    Raises:
        ValueError: no bundle, no such split, or a classifier file of other classes or of another model.
    """
    by_people = decided(config.answers, storage.join(config.model, WEIGHTS_FILE)) if config.answers else None
    bundle, zero_shot = both_ends(config.model, config.baseline)
    ours = bundle.description
    with init_distributed(config.device, timeout=600) as here:
        require(here.size == 1, "must select runs in one process")
        source = EvalSource.of(config, preprocess_of(ours))
        frozen, network = start_of(bundle, zero_shot), bundle.model
        kept, choice = select_weights(
            frozen, network.state_dict(), source, here.device, shares=shares_of(ours), by_people=by_people,
            encoder=zero_shot.encoder,
        )  # fmt: skip
        if zero_shot.encoder:
            ours = replace(ours, provenance=ours.provenance | {"encoder": zero_shot.encoder.record})
        description = described(ours, choice, zero_shot.description.logit_factor, by_people)
        network.load_state_dict(kept)
        network.logit_factor = description.logit_factor
        save_bundle(config.output, network, description)
    copy_log(config.model, config.output)
    line, *more = selection_text(choice, by_people).split("\n")
    logger.info("\n".join([f"{line} -> {config.output}", *more]))
    return choice


def both_ends(model: str, baseline: str) -> tuple[Bundle, Bundle]:
    """(the adapted model, zero-shot), between which there is a way.

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
    """Zero-shot with the adapted model's logit factor, and its weights where they serve training alone."""
    frozen = MaskedViT(zero_shot.model.visual, zero_shot.model.classifier, bundle.description.logit_factor)
    weights = bundle.model.state_dict()
    only_trained = {name: value for name, value in weights.items() if not name.startswith(CLASSIFIES)}
    frozen.load_state_dict(zero_shot.model.state_dict() | only_trained)
    return frozen


def select_weights(
    zero_shot: MaskedViT,
    adapted: Weights,
    source: EvalSource,
    device: torch.device,
    pause: Callable[[], None] | None = None,
    shares: np.ndarray | None = None,
    most: int = MAX_IMAGES,
    by_people: Decided | None = None,
    encoder: Kept | None = None,
) -> tuple[Weights, Choice]:
    """(the weights to use, why). Where nothing speaks for the adaptation they are zero-shot's, bit for bit.

    Args:
        zero_shot: with the adapted model's logit factor.
        pause: called before every batch; it may raise to stop.
        shares: [K] of the images' classes, where training knew them.
        most: images to look at.
        by_people: what answers say; where they decide, they outvote the look-alikes.
        encoder: what says which images look alike, if the frozen tower does not.
    """
    looks = predict_rungs(zero_shot, adapted, subsample(source, most), device, pause, encoder)
    choice = choose_alpha(looks, shares=shares)
    if by_people and by_people.alpha is not None:
        choice = reviewed(choice, looks, by_people.alpha, by_people.text)
    start = {name: value.detach().to(device) for name, value in zero_shot.state_dict().items()}
    end = {name: value.detach().to(device) for name, value in adapted.items()}
    return between(start, end, choice.climb.alpha), choice


def described(
    description: Description, choice: Choice, own_factor: float, by_people: Decided | None = None
) -> Description:
    """The bundle's description with the choice in it. A model that is zero-shot's also has its logit factor."""
    factor = own_factor if choice.climb.kept_zero_shot else description.logit_factor
    found = choice.to_dict()
    if factor != description.logit_factor:
        found.pop("abstention", None)  # it is about other probabilities
    if by_people:
        found["review"] = by_people.record
    story = {**description.provenance, "selection": found}
    return replace(description, logit_factor=factor, provenance=story)


def selection_text(choice: Choice, by_people: Decided | None = None) -> str:
    """For the log: a line, and one more where something is undecided."""
    found = choice.climb
    if by_people and by_people.alpha is not None:
        return f"kept {f'{found.alpha:.0%} of the way' if found.alpha else 'zero-shot'}: {by_people.text}"
    if by_people:
        return f"{by_people.text}, so look-alikes do: {selection_text(choice)}"
    copies = f" ({choice.copies:,} copies left out)" if choice.copies else ""
    by = "" if choice.judge == TOWER else f" to {choice.judge}"
    of = f"of {found.images:,} unlabeled images{by}{copies}"
    if found.kept_zero_shot:
        line = f"kept zero-shot: {found.reason} (look-alikes {of})"
    else:
        why = f"; {found.reason}" if found.reason else ""
        line = f"kept {found.alpha:.0%} of the way from zero-shot to the adapted weights (look-alikes {of}{why})"
    return f"{line}\n  {decided_by(found.undecided)}" if found.undecided else line


def reviewed(choice: Choice, looks: RungPredictions, alpha: float, why: str) -> Choice:
    """The same look at the images, with another share of the way kept and the threshold for naming no class of that."""
    unsure = unsure_at(looks, (0.0, *RUNGS).index(alpha), alpha)
    return replace(choice, climb=replace(choice.climb, alpha=alpha, reason=why, undecided=None), abstention=unsure)


def copy_log(model: str, output: str) -> None:
    """The training log goes with the weights."""
    log = storage.join(model, LOG_FILE)
    if storage.exists(log) and log != storage.join(output, LOG_FILE):
        storage.write_bytes(storage.join(output, LOG_FILE), storage.read_bytes(log))
