"""The champion before training, and whether the data is new."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from must.deploy.promote.registry import Registry
from must.method.train.provenance import run_key

LEFT_TO_PEOPLE = "left to people's answers"  # outcome of a decision that answers may still change
TRAIN, NOTHING_NEW = "train", "nothing new"


@dataclass(frozen=True)
class Champion:
    version: str  # 'none' before the first promotion
    bundle: str  # its URI, or ''
    key: str  # of this run's data and settings
    action: str  # TRAIN or NOTHING_NEW
    reasons: list[str]


def champion(
    registry: str,
    name: str,
    index_sha256: str,
    classifier: str,
    settings: dict[str, Any],
    only_new: bool = False,
    answered: Callable[[str], bool] = lambda key: False,
) -> Champion:
    """Reads the registry, which may be empty.

    Args:
        settings: of the training run, as its component gets them.
        only_new: do not train when a run with this data, these classes and settings was decided before.
        answered: whether answers have come since a run of that key was left to people.
    """
    place = Registry(registry, name)
    latest = place.latest().version
    key = run_key(index_sha256, classifier, settings)
    bundle = place.bundle(latest) if latest else ""
    reasons = [f"champion: {latest or 'none yet'}"]
    decided = place.decision(key) if only_new else None
    if decided and decided["outcome"] == LEFT_TO_PEOPLE and answered(key):
        decided = None
        reasons.append("answers have come to what was left to people")
    if decided:
        reasons.append(f"nothing new: this data with these settings was {decided['outcome']} on {decided['at'][:10]}")
    return Champion(latest or "none", bundle, key, NOTHING_NEW if decided else TRAIN, reasons)
