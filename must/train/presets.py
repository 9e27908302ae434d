"""Published settings of the method, by data set and model (presets.yaml), and those of the bundled digits."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

import yaml

from must.parameters import require

REPORTED = ("dataset", "model", "zero_shot", "must")  # not settings: what the row is for and what it reached


def rows() -> list[dict[str, Any]]:
    text = resources.files("must").joinpath("presets.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["tasks"]


def preset(name: str, model: str) -> dict[str, Any]:
    """The settings of a data set for a model of a published size (ViT-B/16 or ViT-L/14).

    Raises:
        ValueError: no such preset, or none for a model of this size.
    """
    known = list(dict.fromkeys(row["dataset"] for row in rows()))
    require(name in known, f"--preset {name}: unknown; known: {', '.join(known)}")
    candidates = {row["model"]: row for row in rows() if row["dataset"] == name}
    if len(candidates) == 1 and "*" in candidates:
        chosen = candidates["*"]
    else:
        size = published_size(model)
        require(
            size in candidates,
            f"--preset {name}: published for {' and '.join(candidates)} only, not for {model}; "
            "give the settings one by one or in a --config file",
        )
        chosen = candidates[size]
    return {key: value for key, value in chosen.items() if key not in REPORTED}


def published_size(model: str) -> str:
    match = re.search(r"ViT-?([BL])[-/](\d+)", model)
    return f"ViT-{match.group(1)}/{match.group(2)}" if match else ""
