"""A run's parameters from a YAML file, checked against the compiled pipeline before anything is submitted."""

import json
from pathlib import Path
from typing import Any

import yaml

from must.base.errors import UserError
from must.base.parameters import convert, require
from must.base.text import did_you_mean
from must.runtime.check import check_run
from must_pipeline.files import documents

LIMIT = 10_000  # bytes of all parameters together, in Kubeflow Pipelines
KINDS: dict[str, Any] = {
    "STRING": str, "NUMBER_INTEGER": int, "NUMBER_DOUBLE": float, "BOOLEAN": bool, "STRUCT": dict[str, Any],
    "LIST": list[Any],
}  # fmt: skip


def check_parameters(pipeline: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The values, converted to their parameters' types. Raises ValueError: pipeline or stage would refuse them."""
    try:
        spec = documents(pipeline.read_text())[0]
        known = spec["root"]["inputDefinitions"]["parameters"]
    except FileNotFoundError:
        raise UserError(f"--pipeline {pipeline}: no such file; make it with must-pipeline compile") from None
    except (yaml.YAMLError, KeyError, TypeError, IndexError):
        raise UserError(f"--pipeline {pipeline}: is no compiled pipeline") from None
    for name in values:
        if name not in known:
            raise UserError(f"the pipeline has no parameter '{name}'; {did_you_mean(name, sorted(known))}")
    values = {
        name: convert(value, KINDS[known[name]["parameterType"]], f"parameter {name}") for name, value in values.items()
    }
    missing = sorted(name for name in known.keys() - values.keys() if not known[name].get("isOptional"))
    require(not missing, f"parameters missing: {', '.join(missing)}")
    if (size := len(json.dumps(values).encode())) > LIMIT:
        raise UserError(f"the parameters take {size:,} bytes, Kubeflow Pipelines allows {LIMIT:,}; use a file by URI")
    defaults = {name: each["defaultValue"] for name, each in known.items() if "defaultValue" in each}
    check_run(defaults | values)
    return values
