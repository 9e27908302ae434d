"""The wheel in an environment that holds nothing else of the project, away from the checkout."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
import urllib.request
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest

from must.api.demo import load_digits, name_image
from tests.common import ROOT, printed

pytestmark = pytest.mark.slow
FOLDERS = ("must", "components", "pipeline")
FILES = ("pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what the package is built from, so that no build is left in the checkout."""
    folder = tmp_path_factory.mktemp("source")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    return folder


def build(kind, source, folder):
    folder.mkdir()
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(folder)!r}))"
    return folder / printed(sys.executable, "-c", code, cwd=source).split()[-1]


def wheel_files(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return build("wheel", source, tmp_path_factory.mktemp("built") / "wheel")


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """An empty environment with the wheel; its dependencies are the tests' own, which hold no part of the project."""
    folder = tmp_path_factory.mktemp("stranger") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, wheel], check=True)
    packages = sysconfig.get_path("purelib", vars={"base": str(folder)})
    # A .pth file's line puts a folder on the path; .pth files in that folder, such as an editable must's, do not count.
    Path(packages, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def variables(environment):
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return clean | {"PATH": os.pathsep.join([str(environment / "bin"), clean["PATH"]])}


def run(environment, cwd, program, *words):
    """What a program of the environment prints, which ends with 0."""
    return printed(environment / "bin" / program, *words, cwd=cwd, env=variables(environment))


def test_the_wheel_has_three_packages_and_all_their_files(wheel, source):
    files = wheel_files(wheel)
    assert {name.split("/")[0] for name in files} == {"must", "must_components", "must_pipeline"}
    homes = {"must": source / "must", "must_components": source / "components" / "must_components"}
    homes["must_pipeline"] = source / "pipeline" / "must_pipeline"
    for package, home in homes.items():
        kept = {f"{package}/{path.relative_to(home).as_posix()}" for path in home.rglob("*") if path.is_file()}
        assert kept - files == set()


def test_a_source_distribution_builds_the_same_wheel(wheel, source, tmp_path):
    with tarfile.open(build("sdist", source, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert wheel_files(build("wheel", unpacked, tmp_path / "again")) == wheel_files(wheel)


def test_a_stranger_compiles_and_runs_the_demo(environment, tmp_path):
    """The example as `make demo` runs it, at its size: its labelled test images decide, by default, to promote it."""
    code = "import must, must_components as c, must_pipeline as p; print(must.__file__, c.__file__, p.__file__)"
    found = run(environment, tmp_path, "python", "-c", code).split()
    assert len(found) == 3 and all(Path(path).is_relative_to(environment) for path in found)
    code = "from importlib.util import find_spec; print(find_spec('components'), find_spec('pipeline'))"
    assert run(environment, tmp_path, "python", "-c", code) == "None None\n"
    run(environment, tmp_path, "must-pipeline", "compile")
    text = (tmp_path / "must_pipeline.yaml").read_text()
    assert text == (ROOT / "pipeline" / "must_pipeline.yaml").read_text()
    run(environment, tmp_path, "must", "demo", "--output", "demo")
    command = ("must-pipeline", "run", "--parameters", "demo/pipeline.yaml", "--output", "demo/run")
    ran = run(environment, tmp_path, *command)
    latest = tmp_path / "demo/run/latest"
    assert next(latest.glob("*/run_summary")).read_text().startswith("# Promoted ")
    decision = json.loads(next(latest.glob("*/decision")).read_text())
    assert (decision["passed"], decision["gate"], decision["outcome"]) == (True, "labelled", "passed"), decision
    version = json.loads(next((tmp_path / "demo/run/registry").rglob("version.json")).read_text())
    assert version["metrics"]["baseline"]["top1"] == 0.734 and version["metrics"]["adapted"]["top1"] > 0.9
    image = next((tmp_path / "demo" / "images" / "test").rglob("*.png"))
    (onnx,) = (line.split()[-1] for line in ran.splitlines() if line.startswith("  ONNX model"))  # as it is printed
    assert image.name in run(environment, tmp_path, "must", "predict", "--model", f"{onnx}/model.onnx", image)


def test_quickstart_is_answered_until_the_set_is_finished(environment, tmp_path):
    """With the true classes, as the page sends them; then Ctrl-C."""
    truth = {name_image(number): label for number, (_, label) in enumerate(load_digits()["unlabeled"])}
    place = {"cwd": tmp_path, "env": variables(environment), "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([environment / "bin" / "must", "quickstart"], **place) as program:
        try:
            url = next(found[1] for line in program.stdout if (found := re.search(r"must review: (\S+)", line)))

            def ask(action, **request):
                data = json.dumps({"page": "1"} | request).encode()
                return json.load(urllib.request.urlopen(urllib.request.Request(url + action, data)))

            while "wait" in (reply := ask("next")):
                time.sleep(0.2)
            review = json.loads((tmp_path / "quickstart/work/review/review.json").read_text())
            names = {picture["number"]: picture["image"] for picture in review["pictures"]}
            actions = 0  # clicks and keys
            while reply["picture"] or reply["screen"]:
                actions += 1
                if picture := reply["picture"]:
                    reply = ask("answer", number=picture["number"], kind="label", label=truth[names[picture["number"]]])
                    continue
                groups = defaultdict(list)
                for picture in reply["screen"]["pictures"]:
                    groups[truth[names[picture["number"]]]].append(picture["number"])
                said, right = [["label", label, numbers] for label, numbers in groups.items()], reply["screen"]["label"]
                actions += sum(len(numbers) for label, numbers in groups.items() if label != right)
                reply = ask("answer", screen=said, right=right)
            state = reply["state"]
            assert state["finished"] and actions < 300, state
            assert state["true"][0] < 0.75 and state["true"][1] > 0.95 and state["labels"][1] < state["true"][1]
            program.send_signal(signal.SIGINT)
            said = program.stdout.read()
            program.wait()
        finally:
            program.kill()  # it has ended, if all is well
    assert program.returncode == 0
    found = re.search(r"([\d.]+)% of the labels; ([\d.]+)% by the model for 500 other pictures, 73.4% by", said)
    assert min(map(float, found.groups())) > 90, said
    assert (tmp_path / "quickstart/work/report/report.html").exists()
