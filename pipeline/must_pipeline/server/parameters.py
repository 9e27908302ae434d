"""A run's parameters from a YAML file, checked against the compiled pipeline before anything is submitted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from must.base.text import close_to
from must.runtime.check import check_run
from must_pipeline.files import documents

LIMIT = 10_000  # bytes of all parameters together, Kubeflow Pipelines' own
KINDS: dict[str, tuple[type, ...]] = {
    "STRING": (str,),
    "NUMBER_INTEGER": (int,),
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": (bool,),
    "STRUCT": (dict,),
    "LIST": (list,),
}


def check_parameters(pipeline: Path, values: dict[str, Any]) -> None:
    """Raises ValueError: what the pipeline does not take, and what one of its stages would refuse.

    A name it does not have, one that is missing, a wrong type, too much text; settings that a stage does not have.
    """
    try:
        spec = documents(pipeline.read_text())[0]
        known = spec["root"]["inputDefinitions"]["parameters"]
    except FileNotFoundError:
        raise ValueError(f"--pipeline {pipeline}: no such file; make it with must-pipeline compile") from None
    except (yaml.YAMLError, KeyError, TypeError, IndexError):
        raise ValueError(f"--pipeline {pipeline}: is no compiled pipeline") from None
    for name, value in values.items():
        if name not in known:
            near = close_to(name, list(known))
            hint = f"; did you mean '{near[0]}'?" if near else f"; it has: {', '.join(sorted(known))}"
            raise ValueError(f"the pipeline has no parameter '{name}'{hint}")
        kind = known[name]["parameterType"]
        wrong = not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind != "BOOLEAN")
        if wrong:
            raise ValueError(f"parameter {name}: expected {kind.lower()}, got '{value}'")
    missing = sorted(name for name, one in known.items() if not one.get("isOptional") and name not in values)
    if missing:
        raise ValueError(f"parameters missing: {', '.join(missing)}")
    if (size := len(json.dumps(values).encode())) > LIMIT:
        raise ValueError(f"the parameters take {size:,} bytes, Kubeflow Pipelines allows {LIMIT:,}; use a file by URI")
    defaults = {name: one["defaultValue"] for name, one in known.items() if "defaultValue" in one}
    check_run(defaults | values)
