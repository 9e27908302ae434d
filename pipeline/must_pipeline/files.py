"""Copies the example files to a folder, to be changed there: must-pipeline files FOLDER.

cluster.yaml (every key explained), clusters/ (an example for each platform), run.yaml (what a run is to do),
schedule.yaml, and deploy/ (accounts and more, for kubectl apply -k). A file that is there already is left alone.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from must.exits import WRONG_INPUT

FILES = Path(__file__).with_name("files")  # what lies in pipeline/ and deploy/ of the repository
CLUSTER = (FILES / "cluster.yaml").resolve()
COMPILED = (FILES / "must_pipeline.yaml").resolve()  # for that cluster


def nearest(file: Path) -> Path:
    """The file of that name in the current folder, or else `file`, which came with the package."""
    here = Path(file.name)
    return here if here.is_file() else file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    try:
        copy_files(options.folder)
    except OSError as error:
        print(f"files: {options.folder}: {(error.strerror or str(error)).lower()}", file=sys.stderr)
        raise SystemExit(WRONG_INPUT) from None


def copy_files(folder: Path) -> None:
    for source in sorted(walk(FILES)):
        target = folder / source.relative_to(FILES)
        if source.name == COMPILED.name:  # made anew for each cluster
            continue
        if target.exists():
            print(f"{target}: is there already, left alone")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        print(target)


def walk(folder: Path) -> list[Path]:
    """Files in it and below, also in folders that are links."""
    return [file for path in folder.iterdir() for file in (walk(path) if path.is_dir() else [path])]
