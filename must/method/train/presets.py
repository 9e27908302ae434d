"""Published settings of the method, by data set and model (presets.yaml), and those of the bundled digits."""

import re
from importlib import resources
from typing import Any

import yaml

from must.base.parameters import require
from must.base.text import did_you_mean
from must.method.model.classifier import read_header

REPORTED = ("dataset", "model", "zero_shot", "must")  # not settings: what the row is for and what it reached


def settings_of(values: dict[str, Any]) -> dict[str, Any]:
    """What the preset in the values of `must train` sets; nothing if none is named.

    The model is that of the classifier file, unless `values` name one. `auto` reads the shards' index besides.

    Raises:
        ValueError: no such preset, none for this model, or a file that is needed to tell is not there.
    """
    name = values.get("preset", "")
    if not name:
        return {}
    if name == "auto":
        from must.method.train.auto import auto

        return auto(values)
    require_known(name)
    model = values.get("model") or ""
    if not (model or for_any_model(name)):
        model = read_header(values["classifier"])["model"]
    return preset(name, model)


def require_known(name: str) -> None:
    known = ["auto", *dict.fromkeys(row["dataset"] for row in rows())]
    require(name in known, f"--preset {name}: unknown; {did_you_mean(name, known)}")


def for_any_model(name: str) -> bool:
    return any(row["model"] == "*" for row in rows() if row["dataset"] == name)


def rows() -> list[dict[str, Any]]:
    text = resources.files("must.config").joinpath("presets.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["tasks"]


def preset(name: str, model: str) -> dict[str, Any]:
    """The settings of a data set for a model of a published size (ViT-B/16 or ViT-L/14).

    Raises:
        ValueError: no such preset, or none for a model of this size.
    """
    require_known(name)
    candidates = {row["model"]: row for row in rows() if row["dataset"] == name}
    if for_any_model(name):
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
