"""Runs of the compiled DAG in containers, as a user starts them."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

import must
from tests.containers.engine import UID, own

ROOT = Path(must.__file__).parent.parent


def command(parameters: Path, output: Path) -> list[str]:
    options = ["--parameters", str(parameters), "--output", str(output), "--runner", "docker"]
    if os.getuid() == 0:  # as somebody who is not root
        (output / "runs").mkdir(parents=True, exist_ok=True)
        own(output)
        options += ["--user", f"{UID}:0"]
    return [sys.executable, str(ROOT / "pipeline" / "run_local.py"), *options]


def run_local(parameters: Path, output: Path) -> subprocess.CompletedProcess:
    return subprocess.run(command(parameters, output), capture_output=True, text=True, check=False, timeout=1500)


def write(folder: Path, demo: Path, **changes) -> Path:
    parameters = yaml.safe_load((demo / "pipeline.yaml").read_text()) | {"preset": "digits"} | changes
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "parameters.yaml").write_text(yaml.safe_dump(parameters))
    return folder / "parameters.yaml"
