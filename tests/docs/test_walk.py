"""The README and then the laptop's page, walked through, and the page of day two: their blocks are run in order, the
laptop's as far as the README has not run the same lines. What differs from the page: the photographs and class names
are the bundled digits', the backbone is the bundled tiny CLIP, and training is short. Installing: tests/release."""

import json
import os
import re
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.common import ROOT, printed
from tests.docs.blocks import blocks

SHORT = {"batch_size": 32, "workers": 0, "epochs": 2}
DEMO = "must demo --output demo"
SKIPPED = ("python3 -m venv", "pip install")
ADDED = {
    "adapt": ["--model", "demo/model", "--settings", ",".join(f"{name}={value}" for name, value in SHORT.items())],
    "plan": ["--batch-size", "32", "--workers", "0"],
}


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


@pytest.fixture
def walk(tmp_path):
    """Runs the blocks of pages in the folder, without the lines of earlier pages; returns all lines."""
    done, path = set(), os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    run = partial(printed, cwd=tmp_path, env=os.environ | {"PATH": path})

    def run_page(page):
        for block in blocks(ROOT / page):
            if block.run in ("parse", "never"):
                continue
            if block.language == "python":
                code = block.text.replace("output=", 'model="demo/model", batch_size=32, workers=0, epochs=2, output=')
                run(sys.executable, "-c", code)
            elif block.language == "bash":
                for line in re.sub(r"\\\n *", "", block.text.strip()).split("\n"):
                    if not line.startswith(SKIPPED) and line not in done:
                        run(*shortened(line) if line.startswith("must ") else ["bash", "-c", line])
                        yield line

    def walk(*pages):
        for page in pages:
            done.update(list(run_page(page)))
        return done

    run(*shlex.split(DEMO))
    done.add(DEMO)
    shorten_the_demo(tmp_path)
    return walk


@pytest.mark.slow
def test_walk(tmp_path, walk):
    done = walk("README.md", "docs/laptop.md")
    assert {"demo", "adapt", "export", "predict"} <= {line.split()[1] for line in done}
    assert (tmp_path / "work" / "report" / "report.html").is_file()
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 301


@pytest.mark.slow
def test_day_two(tmp_path, walk):
    shutil.rmtree(tmp_path / "new-photos")
    (tmp_path / "new-photos").mkdir()
    images = sorted((tmp_path / "demo" / "images" / "unlabeled").rglob("*.png"))
    for number, image in enumerate(images[300:310]):
        shutil.copy(image, tmp_path / "new-photos" / f"new-{number}.jpg")
    (tmp_path / "corrections.csv").write_text("image,class\n0.jpg,three\nnew-1.jpg,none of these\n")
    shutil.copytree(tmp_path / "demo" / "images" / "test", tmp_path / "labelled")
    walk("docs/day-two.md")
    work = tmp_path / "work"
    table = (work / "labels" / "predictions.csv").read_text()
    assert len(table.splitlines()) == 311 and "\n0.jpg,three,1.0" in table and "\nnew-1.jpg,none of these," in table
    classes = json.loads((work / "model" / "model.json").read_text())["classes"]
    assert classes[-1] == "rabbit"
    metrics = json.loads((work / "report" / "metrics.json").read_text())
    assert metrics["labelled"] == 500 and metrics["adapted"]["top1"] > metrics["baseline"]["top1"]
