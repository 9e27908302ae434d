"""Runs of the compiled DAG on this machine, small ones, and what their logs tell."""

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from must_pipeline.local_runner import COLOR, StageOutput

ROOT = Path(__file__).parents[2]


def small_demo(folder):
    """The bundled example with few images and epochs, and a learning rate for them; returns the pipeline's parameters.

    Its model is better than zero-shot for certain on the test images, by about 7 points.
    """
    subprocess.run([sys.executable, "-m", "must", "demo", "--output", folder], check=True, capture_output=True)
    parameters = yaml.safe_load((folder / "pipeline.yaml").read_text())
    files = sorted((folder / "images" / "unlabeled").rglob("*.png"))
    (later := folder / "later").mkdir()
    for file in files[160:200]:
        shutil.move(file, later / file.name)
    for file in files[200:]:
        file.unlink()
    for file in sorted((folder / "images" / "test").rglob("*.png"))[::4]:
        file.unlink()
    settings = {"batch_size": 32, "workers": 0, "lr": 0.01, "alpha": 1.0}
    gate = {"gate": "labelled", "gate_settings": {"min_gain": 0.0}}
    return parameters | {"preset": "digits", "settings": settings, "epochs": 6} | gate


class Run:
    """A finished run: its code, output and artifacts."""

    def __init__(self, parameters, output, *flags):
        file = output.with_name(f"{output.name}.parameters.yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(parameters))
        command = [sys.executable, ROOT / "pipeline" / "run_local.py", "--parameters", file, "--output", output, *flags]
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=output.parent)
        self.code, self.log, self.error = result.returncode, COLOR.sub("", result.stdout), result.stderr
        newest = max((output / "runs").glob("*"), default=None)
        self.artifacts = {path.name: path for path in newest.glob("*/*")} if newest else {}

    @property
    def stages(self):
        return re.findall(r"Executing task '(.*)'", self.log)

    @property
    def console(self):
        """What a user sees without --verbose."""
        shown = io.StringIO()
        StageOutput(shown).write(self.log)
        return shown.getvalue()
