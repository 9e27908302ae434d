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
    model = values.get("model") or ("" if "*" in rows_of(name) else read_header(values["classifier"])["model"])
    return preset(name, model)


def rows_of(name: str) -> dict[str, dict[str, Any]]:
    """A preset's rows by the model's size, '*' for any. Raises ValueError: there is no such preset."""
    rows = yaml.safe_load(resources.files("must.config").joinpath("presets.yaml").read_text(encoding="utf-8"))["tasks"]
    known = ["auto", *dict.fromkeys(row["dataset"] for row in rows)]
    require(name in known, f"--preset {name}: unknown; {did_you_mean(name, known)}")
    return {row["model"]: row for row in rows if row["dataset"] == name}


def preset(name: str, model: str) -> dict[str, Any]:
    """The settings of a data set for a model of a published size (ViT-B/16 or ViT-L/14).

    Raises:
        ValueError: no such preset, or none for a model of this size.
    """
    rows = rows_of(name)
    size = "*" if "*" in rows else published_size(model)
    require(
        size in rows,
        f"--preset {name}: published for {' and '.join(rows)} only, not for {model}; "
        "give the settings one by one or in a --config file",
    )
    return {key: value for key, value in rows[size].items() if key not in REPORTED}


def published_size(model: str) -> str:
    match = re.search(r"ViT-?([BL])[-/](\d+)", model)
    return f"ViT-{match.group(1)}/{match.group(2)}" if match else ""
