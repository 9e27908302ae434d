"""adapt.json: the inputs that a folder of `must adapt` was made from; outdated parts are moved when they change."""

import json
import logging
from pathlib import Path
from typing import Any

from must.base import storage
from must.base.files import CLASSIFIER_FILE, DESCRIPTION_FILE, INDEX_FILE, RECORD_FILE
from must.base.parameters import require

logger = logging.getLogger(__name__)

BUNDLE, SHARDS, LABELS, REPORT = "model", "shards", "labels", "report"
TRAINED = (BUNDLE, LABELS, REPORT)
MADE_FROM = {
    **dict.fromkeys(("images", "test_images"), (SHARDS, *TRAINED)), "settings": TRAINED,
    **dict.fromkeys(("classes", "model", "pretrained"), (CLASSIFIER_FILE, *TRAINED)),
}  # fmt: skip
"""By input: the parts that are made from it."""
CHEAP = {CLASSIFIER_FILE, LABELS, REPORT}  # remade without asking
GROWN = "grown"  # in the record: labelled images were added to existing shards


def record(folder: Path, inputs: dict[str, Any], again: bool = False) -> bool:
    """Writes down what the folder is made from. Parts made from other inputs are moved to a folder before-N in it.
    Returns whether labelled images have to be added to existing shards.
    Raises ValueError: shards or a model were made from other inputs, and `again` is not set."""
    file, now = folder / RECORD_FILE, json.loads(json.dumps(inputs, default=str))
    before = storage.read_json(str(file), "adapt") if file.exists() else dict(now)
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
    old, new = before.get("settings", {}), now.get("settings", {})
    settings = {name for name in old | new if old.get(name) != new.get(name)}
    differences = ", ".join(sorted(changed - {"settings"} | settings))
    require(
        again or outdated <= CHEAP,
        f"{folder}: was made from other inputs ({differences}); choose another output, or give --again: what they do "
        "not change is kept, and the rest is moved to a folder before-1 in it",
    )
    if outdated:
        backup = next(path for n in range(1, 10_000) if not (path := folder / f"before-{n}").exists())
        backup.mkdir()
        for part in sorted(outdated):
            (folder / part).rename(backup / part)
        logger.info(
            f"{folder}: made from other inputs ({differences}): {', '.join(sorted(outdated))} moved to {backup.name}"
        )
    mark = {GROWN: True} if growing or (grown and SHARDS not in outdated) else {}
    if before != now or not file.exists():
        storage.write_bytes(str(file), json.dumps(now | mark, indent=1).encode())
    return bool(mark)
