"""The champion before training: what is to be beaten, what training may start from, whether the data is new."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from must.deploy.promote.registry import Registry
from must.method.model.bundle import load_description
from must.method.model.classifier import load_text_classifier
from must.method.train.provenance import other_origin, run_key

LEFT_TO_PEOPLE = "left to people's answers"  # outcome of a decision that answers may still change
TRAIN, NOTHING_NEW = "train", "nothing new"


@dataclass(frozen=True)
class Champion:
    version: str  # 'none' before the first promotion
    bundle: str  # its URI, or ''
    init: str  # the bundle to start from, or '' for the zero-shot model
    key: str  # of this run's data and settings
    action: str  # TRAIN or NOTHING_NEW
    reasons: list[str]


def champion(
    registry: str,
    name: str,
    index_sha256: str,
    classifier: str,
    settings: dict[str, Any],
    warm_start: bool = False,
    only_new: bool = False,
    answered: Callable[[str], bool] = lambda key: False,
) -> Champion:
    """Reads the registry, which may be empty.

    Args:
        settings: of the training run, as its component gets them.
        warm_start: start from the champion where it has the same backbone, pretrained weights and classes.
        only_new: do not train when a run with this data, these classes and settings was decided before.
        answered: whether answers have come since a run of that key was left to people.
    """
    place = Registry(registry, name)
    latest = place.latest().version
    key = run_key(index_sha256, classifier, settings)
    bundle = place.bundle(latest) if latest else ""
    reasons = [f"champion: {latest or 'none yet'}"]
    init = ""
    if warm_start and latest:
        difference = incompatibility(bundle, classifier)
        init = "" if difference else bundle
        reasons.append(f"starts from {latest}" if init else f"starts from zero-shot: the champion has {difference}")
    decided = place.decision(key) if only_new else None
    if decided and decided["outcome"] == LEFT_TO_PEOPLE and answered(key):
        decided = None
        reasons.append("answers have come to what was left to people")
    if decided:
        reasons.append(f"nothing new: this data with these settings was {decided['outcome']} on {decided['at'][:10]}")
    return Champion(latest or "none", bundle, init, key, NOTHING_NEW if decided else TRAIN, reasons)


def incompatibility(bundle: str, classifier: str) -> str:
    """What keeps training from starting at this bundle, in words; '' if nothing does."""
    old, new = load_description(bundle), load_text_classifier(classifier)
    if tuple(old.classes) != tuple(new.classes):
        return "other classes"
    if old.backbone != new.model:
        return f"another backbone ({old.backbone})"
    return other_origin(old, new.pretrained, new.model_sha256)
