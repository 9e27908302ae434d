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
GAINS = {"gate": "labelled", "gate_settings": {"min_gain": 0.0}}
NO_WORSE = {"gate": "labelled", "gate_settings": {"min_gain": -0.2}}
LABEL_FREE = {"gate": "label-free", "gate_settings": {}}


def small_demo(folder, images=160):
    """The bundled example with few images and epochs, and a learning rate for them; returns the pipeline's parameters.

    Its model is better than zero-shot for certain on the test images (GAINS), by about 7 points. One that is trained on
    40 images more is about as good, of which 375 test images show no more than NO_WORSE.
    """
    subprocess.run([sys.executable, "-m", "must", "demo", "--output", folder], check=True, capture_output=True)
    parameters = yaml.safe_load((folder / "pipeline.yaml").read_text())
    files = sorted((folder / "images" / "unlabeled").rglob("*.png"))
    (later := folder / "later").mkdir()
    for number, file in enumerate(files[images:]):
        if number < 40:
            shutil.move(file, later / file.name)
        else:
            file.unlink()
    for file in sorted((folder / "images" / "test").rglob("*.png"))[::4]:
        file.unlink()
    settings = {"batch_size": 32, "workers": 0, "lr": 0.01, "alpha": 1.0}
    return parameters | {"preset": "digits", "settings": settings, "epochs": 6} | GAINS


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
