"""The README and then the laptop's page, walked through: their blocks are run in order in a folder empty at first.

The second page's lines are run as far as the first has not run the same ones: what those made is there.
What differs from the page: the photographs and class names are the bundled digits', the backbone is the bundled tiny
CLIP, and training is short. The installation is tests/release's subject.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.docs.blocks import ROOT, blocks

SHORT = {"batch_size": 32, "workers": 0, "epochs": 2}
SKIPPED = ("python3 -m venv", "pip install")
ADDED = {
    "adapt": ["--model", "demo/model", "--settings", ",".join(f"{name}={value}" for name, value in SHORT.items())],
    "plan": ["--batch-size", "32", "--workers", "0", "--seconds", "1"],
}


@pytest.fixture
def run(tmp_path):
    """Runs a line in the folder; returns what it printed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

    def run(words):
        result = subprocess.run(
            words, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{words}: {result.stdout[-2000:]}{result.stderr[-2000:]}"
        return result.stdout

    return run


def shortened(line):
    """The line's words with the tiny model in the backbone's place, and short training."""
    words = shlex.split(line, comments=True)
    if words[:2] == ["must", "classifier"]:
        at = words.index("--pretrained")
        words = [*words[:at], *words[at + 2 :]]
        words[words.index("--model") + 1] = "demo/model"
    return words + ADDED.get(words[1] if words[0] == "must" else "", [])


def shorten_the_demo(folder):
    """As after `must demo`; and the user's own photographs and classes, which are the digits."""
    file = folder / "demo" / "pipeline.yaml"
    parameters = yaml.safe_load(file.read_text())
    settings = {name: value for name, value in SHORT.items() if name != "epochs"}
    file.write_text(yaml.safe_dump(parameters | {"settings": settings, "epochs": SHORT["epochs"]}))
    (folder / "photos").mkdir()
    for number, image in enumerate(sorted((folder / "demo" / "images" / "unlabeled").rglob("*.png"))[:300]):
        shutil.copy(image, folder / "photos" / f"{number}.jpg")
    shutil.copytree(folder / "photos", folder / "new-photos")
    names = yaml.safe_load((folder / "demo" / "classes.yaml").read_text())["classes"]
    (folder / "classes.txt").write_text("".join(f"{one if isinstance(one, str) else one['name']}\n" for one in names))


@pytest.mark.slow
def test_walk(tmp_path, run):
    done = set()
    for block in [*blocks(ROOT / "README.md"), *blocks(ROOT / "docs/laptop.md")]:
        if block.run in ("parse", "never"):
            continue
        if block.language == "python":
            code = block.text.replace("output=", 'model="demo/model", batch_size=32, workers=0, epochs=2, output=')
            run([sys.executable, "-c", code])
        elif block.language == "bash":
            for line in block.text.strip().split("\n"):
                if line.startswith(SKIPPED) or line in done:
                    continue
                run(shortened(line))
                done.add(line)
                if line.startswith("must demo"):
                    shorten_the_demo(tmp_path)
    assert {"demo", "adapt", "export", "predict"} <= {line.split()[1] for line in done}
    assert (tmp_path / "work" / "report" / "report.html").is_file()
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 301
    assert (tmp_path / "quick" / "refined" / "predictions.csv").is_file()
