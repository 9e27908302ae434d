"""The example files, and copies of them in a folder, to be changed there: must-pipeline files."""

import argparse
import shutil
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
PACKAGED = HERE / "files"  # in a wheel (setup.py); a checkout has them in pipeline/ and deploy/
PIPELINE, DEPLOY = (PACKAGED, PACKAGED / "deploy") if PACKAGED.is_dir() else (HERE.parent, HERE.parents[1] / "deploy")
CLUSTER = PIPELINE / "cluster.yaml"
COMPILED = PIPELINE / "must_pipeline.yaml"  # for that cluster
LABELLING = PIPELINE / "must_label.yaml"  # the second pipeline
FOLDERS = {"": PIPELINE, "clusters": PIPELINE / "clusters", "deploy": DEPLOY}


def find_nearest_file(file: Path) -> Path:
    """The file of that name in the current folder, else `file`, which is part of the package."""
    local = Path(file.name)
    return local if local.is_file() else file


def load_documents(pipeline: str | bytes) -> list[Any]:
    """The YAML documents of a compiled pipeline; libyaml, if PyYAML has it, is ten times as fast."""
    return list(yaml.load_all(pipeline, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def name_pipeline(file: Path) -> str:
    """The name in a compiled pipeline."""
    return str(load_documents(file.read_text())[0]["pipelineInfo"]["name"])


def main(options: argparse.Namespace) -> None:
    copy_files(options.folder)


def copy_files(folder: Path) -> None:
    examples = [(name, source) for name, home in FOLDERS.items() for source in sorted(home.glob("*.yaml"))]
    for name, source in examples:
        target = folder / name / source.name
        if source.name in (COMPILED.name, LABELLING.name):  # compiled for each cluster
            continue
        if target.exists():
            print(f"{target}: is there already, left alone")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        print(target)
