"""The compiled file: how it is made for a cluster, and what it says about its parameters and its cluster."""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args, get_type_hints

import yaml

from must.base.errors import UserError
from must.base.parameters import convert, require
from must.base.text import suggest_name
from must.config import ExportConfig, GateConfig, ShardConfig
from must.pods.check import check_labelling, check_run
from must_pipeline.cluster import ClusterConfig, load_cluster

WIDTH: Final = 1_000  # characters of a line: shorter lines make the file a tenth larger
CONFIGS: Final = {"gate": GateConfig, "labels": ShardConfig, "precision": ExportConfig}  # of these parameters
CHOICES: Final = {name: get_args(get_type_hints(config)[name]) for name, config in CONFIGS.items()}
MADE_FOR: Final = "# Compiled by must-pipeline for: "  # a line of the file, before what `identify_cluster` returns
LIMIT: Final = 10_000  # bytes of all parameters together, in Kubeflow Pipelines
KINDS: Final[dict[str, Any]] = {
    "STRING": str, "NUMBER_INTEGER": int, "NUMBER_DOUBLE": float, "BOOLEAN": bool, "STRUCT": dict[str, Any],
}  # fmt: skip


class Compiled(NamedTuple):
    """What a compiled file says: the pipeline's name, its parameters by name, and its cluster (`identify_cluster`)."""

    name: str
    parameters: dict[str, Any]
    cluster: dict[str, str]


def identify_cluster(cluster: ClusterConfig) -> dict[str, str]:
    """Where runs are started, and a checksum of all settings."""
    checksum = sha256(json.dumps(asdict(cluster), sort_keys=True).encode()).hexdigest()
    return {"namespace": cluster.namespace, "service_account": cluster.service_account, "sha256": checksum}


def compile_pipeline(cluster: ClusterConfig, output: Path, make: Callable[[ClusterConfig], Any] | None = None) -> None:
    """Writes a compiled pipeline; `make` is a function of dag.py. The same source and cluster give the same bytes."""
    from kfp import compiler  # takes half a second: errors in cluster.yaml come first

    from must_pipeline.dag import make_pipeline

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile((make or make_pipeline)(cluster), str(file))
        text = file.read_text()
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))  # kfp reads it
    header += f"{MADE_FOR}{json.dumps(identify_cluster(cluster))}\n"
    spec, *platform = load_documents(text)
    offer_choices(spec)
    output.write_text(header + yaml.safe_dump_all([spec, *platform], sort_keys=True, width=WIDTH))


def load_documents(pipeline: str | bytes) -> list[Any]:
    """The YAML documents of a compiled pipeline; libyaml, if PyYAML has it, is ten times as fast."""
    return list(yaml.load_all(pipeline, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def offer_choices(spec: dict[str, Any]) -> None:
    """Adds the permitted values of parameters: Kubeflow's page shows them as menus, and its server refuses other values
    before a pod starts. kfp refuses Literal in a pipeline's signature, but its loader reads it from a file."""
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    for name in CHOICES.keys() & parameters.keys():
        parameters[name]["literals"] = list(CHOICES[name])


def read_compiled(file: Path, cluster: Path | None = None) -> Compiled:
    """Raises ValueError: `file` is not there, was not made by `compile`, or was made for another cluster."""
    where = f"--pipeline {file}"
    try:
        text = file.read_text()
        spec, made_for = load_documents(text)[0], re.search(rf"(?m)^{MADE_FOR}(.*)$", text)
        parameters, name = spec["root"]["inputDefinitions"]["parameters"], spec["pipelineInfo"]["name"]
        made = Compiled(name, parameters, json.loads(made_for[1] if made_for else ""))
    except FileNotFoundError:
        raise UserError(f"{where}: no such file; make it with must-pipeline compile") from None
    except (yaml.YAMLError, ValueError, KeyError, TypeError, IndexError):
        raise UserError(f"{where}: was not made by must-pipeline compile of this version") from None
    require(
        cluster is None or made.cluster == identify_cluster(load_cluster(cluster)),
        f"{where}: was compiled for another cluster.yaml than {cluster}; compile it again",
    )
    return made


def check_parameters(compiled: Compiled, values: dict[str, Any]) -> dict[str, Any]:
    """The values, converted to their parameters' types. Raises ValueError: pipeline or stage would refuse them."""
    known = compiled.parameters
    for name in values:
        if name not in known:
            raise UserError(f"the pipeline has no parameter '{name}'; {suggest_name(name, sorted(known))}")
    values = {
        name: convert(value, KINDS[known[name]["parameterType"]], f"parameter {name}") for name, value in values.items()
    }
    missing = sorted(name for name in known.keys() - values.keys() if not known[name].get("isOptional"))
    require(not missing, f"parameters missing: {', '.join(missing)}")
    if (size := len(json.dumps(values).encode())) > LIMIT:
        raise UserError(f"the parameters take {size:,} bytes, Kubeflow Pipelines allows {LIMIT:,}; use a file by URI")
    defaults = {name: each["defaultValue"] for name, each in known.items() if "defaultValue" in each}
    (check_labelling if "least_similarity" in known else check_run)(defaults | values)
    return values


def warn_of_images(file: Path) -> None:
    local = "`registry` is empty: the images' names work only on nodes that hold the images (make images)"
    print(f"{Path(sys.argv[0]).name}: warning: {file}: {local}", file=sys.stderr)


def main(options: argparse.Namespace) -> None:
    cluster = load_cluster(options.cluster) if options.cluster else ClusterConfig()
    from must_pipeline.dag import make_label_pipeline, make_pipeline

    output = options.output or Path("must_label.yaml" if options.label else "must_pipeline.yaml")
    compile_pipeline(cluster, output, make_label_pipeline if options.label else make_pipeline)
    if options.cluster and not cluster.registry:
        warn_of_images(options.cluster)
    print(f"{output}: {output.stat().st_size:,} bytes, for {options.cluster or 'this machine: no --cluster was given'}")
