"""adapt.json: what the parts of a folder of `must adapt` were made from, and what becomes of them with other inputs."""

import json
import logging
from pathlib import Path
from typing import Any

from must.base import storage
from must.base.files import CLASSIFIER_FILE, DESCRIPTION_FILE, INDEX_FILE, RECORD_FILE
from must.base.parameters import require
from must.base.text import brief

logger = logging.getLogger(__name__)

BUNDLE, SHARDS, LABELS, REPORT = "model", "shards", "labels", "report"
TRAINED = (BUNDLE, LABELS, REPORT)
MADE_FROM = {
    **dict.fromkeys(("images", "test_images"), (SHARDS, *TRAINED)), "settings": TRAINED,
    **dict.fromkeys(("classes", "model", "pretrained"), (CLASSIFIER_FILE, *TRAINED)),
}  # fmt: skip
"""By input: what is made from it."""
CHEAP = {CLASSIFIER_FILE, LABELS, REPORT}  # made anew without a question
GROWN = "grown"  # in the record: labelled images came to shards that were there already


def record(folder: Path, inputs: dict[str, Any], again: bool = False) -> bool:
    """Remembers what the folder is made from. What was made from something else goes to a folder before-N in it.

    Returns:
        Whether labelled images have to be added to shards that are there.

    Raises:
        ValueError: shards or a model were made from something else, and `again` does not say that they may go.
    """
    place, now = folder / RECORD_FILE, json.loads(json.dumps(inputs, default=str))
    before = storage.read_json(str(place), "adapt") if place.exists() else dict(now)
    grown = bool(before.pop(GROWN, False))
    changed = {name for name in now if before.get(name) != now[name]}
    growing = "test_images" in changed and not before.get("test_images") and (folder / SHARDS / INDEX_FILE).exists()
    growing &= "images" not in changed
    outdated = {part for name in changed for part in MADE_FROM[name] if not (growing and name == "test_images")}
    outdated |= {REPORT} if growing else set()
    outdated = {part for part in outdated if (folder / part).exists()}
    begun = (folder / BUNDLE).exists() and not (folder / BUNDLE / DESCRIPTION_FILE).exists()
    require(
        not (growing and begun and BUNDLE not in outdated),
        f"{folder}: training has begun without test images; finish it with the same command as before, then add them",
    )
    differences = ", ".join(text for name in sorted(changed) for text in named(name, before.get(name), now[name]))
    require(
        again or outdated <= CHEAP,
        f"{folder}: was made from other inputs ({differences}); choose another output, or give --again: what they do "
        "not change is kept, and the rest is moved to a folder before-1 in it",
    )
    if outdated:
        aside = next(at for n in range(1, 10_000) if not (at := folder / f"before-{n}").exists())
        aside.mkdir()
        for part in sorted(outdated):
            (folder / part).rename(aside / part)
        logger.info(
            f"{folder}: made from other inputs ({differences}): {', '.join(sorted(outdated))} moved to {aside.name}"
        )
    kept = {GROWN: True} if growing or (grown and SHARDS not in outdated) else {}
    if before != now or not place.exists():
        storage.write_bytes(str(place), json.dumps(now | kept, indent=1).encode())
    return bool(kept)


def named(name: str, old: Any, new: Any) -> list[str]:
    """What has changed, old -> new; of what is known by a checksum alone, its name."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        return [f"{key}: {shown(old.get(key))} -> {shown(new.get(key))}" for key in keys]
    words = name.replace("_", " ")
    if any(isinstance(value, str) and len(value) == 64 and "/" not in value for value in (old, new)):
        return [f"other {words}"]
    return [f"{words}: {shown(old)} -> {shown(new)}"]


def shown(value: Any) -> str:
    return "none" if value in (None, "", {}) else brief(value).strip("'")
