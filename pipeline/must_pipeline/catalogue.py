"""Writes the components that work in any pipeline as a catalogue: must-pipeline catalogue FOLDER --owners NAME.

    FOLDER/components/CATEGORY/NAME/component.py      the component, with its image's full name
                                    component.yaml    the same compiled: kfp.components.load_component_from_file
                                    metadata.yaml, README.md, OWNERS, __init__.py

This is the layout of github.com/kubeflow/pipelines-components, except for the tests and the base image. The other
components (gate, promote, predict, ...) need keys and versions of this project's registry and work only in its DAG.
"""

import argparse
import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any, Final

import docstring_parser
import yaml
from kfp import compiler

from must.base.flags import OneLineParser
from must_components import images
from must_pipeline.cluster.config import Cluster
from must_pipeline.cluster.rules import load_cluster
from must_pipeline.files import CLUSTER, documents, nearest

CATEGORIES: Final = {
    "data_processing": ("shard",),
    "training": ("classifier", "train"),
    "evaluation": ("evaluate",),
    "deployment": ("export",),
}
VERIFIED: Final = "2026-11-28T00:00:00Z"  # when the folders were last tested; the catalogue requires a yearly update
TAGS: Final = ["clip", "image_classification", "self_training", "unlabeled_data"]


def write_catalogue(cluster: Cluster, folder: Path, owners: list[str]) -> list[Path]:
    """Returns the components' folders. The output is the same for the same source and cluster."""
    folders = []
    for category, names in CATEGORIES.items():
        for name in names:
            target = folder / "components" / category / name
            target.mkdir(parents=True, exist_ok=True)
            (target / "component.py").write_text(source_of(name, cluster))
            component = load_component(target / "component.py", name)
            compiler.Compiler().compile(component, str(target / "component.yaml"))
            metadata = {
                "name": name, "stability": "alpha",
                "dependencies": {"kubeflow": [{"name": "Pipelines", "version": ">=2.17.0"}]},
                "tags": [category, *TAGS],
            }  # fmt: skip
            text = yaml.safe_dump(metadata, sort_keys=False) + f"lastVerified: {VERIFIED}\n"
            (target / "metadata.yaml").write_text(text)
            (target / "OWNERS").write_text("approvers:\n" + "".join(f"  - {owner}\n" for owner in owners))
            (target / "__init__.py").write_text(f'from .component import {name}\n\n__all__ = ["{name}"]\n')
            spec = documents((target / "component.yaml").read_text())[0]["components"][f"comp-{name}"]
            (target / "README.md").write_text(readme(name, component.python_func.__doc__, spec))
            folders.append(target)
    return folders


def source_of(name: str, cluster: Cluster) -> str:
    """The component's module with its image as text: a catalogue's checks import only kfp and the standard library."""
    text = inspect.getsource(importlib.import_module(f"must_components.{name}"))
    text = text.replace("from must_components import images\n\n", "", 1)
    return re.sub(r"images\.([A-Z]+)", lambda match: repr_of(match.group(1), cluster), text)


def repr_of(constant: str, cluster: Cluster) -> str:
    return json.dumps(cluster.image(getattr(images, constant).partition(":")[0]))


def load_component(file: Path, name: str) -> Any:
    """The kfp component in that file; unlike an import, this writes no folder of bytecode."""
    namespace: dict[str, Any] = {"__name__": name}
    exec(compile(file.read_text(), str(file), "exec"), namespace)
    return namespace[name]


def readme(name: str, docstring: str, spec: dict[str, Any]) -> str:
    """README.md, from the docstring and the compiled types."""
    parsed = docstring_parser.parse(docstring)
    descriptions = {parameter.arg_name: parameter.description for parameter in parsed.params}
    descriptions["Output"] = parsed.returns.description if parsed.returns else ""
    parts = [f"# {name}", parsed.short_description or ""]
    for title, key in (("Inputs", "inputDefinitions"), ("Outputs", "outputDefinitions")):
        rows = [f"## {title}", "", "| name | type | default | |", "|---|---|---|---|"]
        for definitions in spec.get(key, {}).values():  # parameters, artifacts
            for argument, definition in definitions.items():
                kind = definition.get("parameterType") or definition["artifactType"]["schemaTitle"]
                value = definition.get("defaultValue")  # kfp writes 0.0 for an integer
                value = int(value) if kind == "NUMBER_INTEGER" and value is not None else value
                default = "" if value is None else f"`{json.dumps(value)}`"
                description = " ".join((descriptions[argument] or "").split())
                rows.append(f"| {argument} | {kind} | {default} | {description} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="is made; files of the same names are written anew")
    parser.add_argument("--owners", nargs="+", required=True, metavar="NAME", help="who maintains them, on GitHub")
    parser.add_argument("--cluster", type=Path, default=nearest(CLUSTER), help="whose images they name [cluster.yaml]")
    options = parser.parse_args()
    for folder in write_catalogue(load_cluster(options.cluster), options.folder, options.owners):
        print(folder)
