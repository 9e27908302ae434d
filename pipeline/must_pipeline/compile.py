"""Compiles the DAG for a cluster: must-pipeline compile [--cluster FILE] [--output FILE]."""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, get_args, get_type_hints

import yaml

from must.config import ExportConfig, GateConfig, ShardConfig
from must_pipeline.cluster import ClusterConfig, load_cluster, warn_of_spot
from must_pipeline.files import LABELLING, load_documents


def compile_pipeline(cluster: ClusterConfig, output: Path, make: Callable[[ClusterConfig], Any] | None = None) -> None:
    """Writes a compiled pipeline; `make` is a function of dag.py. The same source and cluster give the same bytes."""
    from kfp import compiler  # takes half a second: errors in cluster.yaml come first

    from must_pipeline.dag import make_pipeline

    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile((make or make_pipeline)(cluster), str(compiled))
        text = compiled.read_text()
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))  # kfp reads it
    spec, *platform = load_documents(text)
    offer_choices(spec)
    output.write_text(header + yaml.safe_dump_all([spec, *platform], sort_keys=True, width=WIDTH))


def offer_choices(spec: dict[str, Any]) -> None:
    """Adds the permitted values of parameters: Kubeflow's page shows them as menus, and its server refuses other values
    before a pod starts. kfp refuses Literal in a pipeline's signature, but its loader reads it from a file."""
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    for name in CHOICES.keys() & parameters.keys():
        parameters[name]["literals"] = list(CHOICES[name])


WIDTH: Final = 1_000  # characters of a line: shorter lines make the file a tenth larger
CONFIGS: Final = {"gate": GateConfig, "labels": ShardConfig, "precision": ExportConfig}  # of these parameters
CHOICES: Final = {name: get_args(get_type_hints(config)[name]) for name, config in CONFIGS.items()}


def main(options: argparse.Namespace) -> None:
    cluster = load_cluster(options.cluster)
    from must_pipeline.dag import make_label_pipeline

    labelling = options.output.with_name(LABELLING.name)
    compile_pipeline(cluster, options.output)
    compile_pipeline(cluster, labelling, make_label_pipeline)
    local = "`registry` is empty: the images' names work only on nodes that hold the images (make images)"
    for text in filter(None, ("" if cluster.registry else local, warn_of_spot(cluster))):
        print(f"{Path(sys.argv[0]).name}: warning: {options.cluster}: {text}", file=sys.stderr)
    for file in (options.output, labelling):
        print(f"{file}: {file.stat().st_size:,} bytes, for {options.cluster}")
