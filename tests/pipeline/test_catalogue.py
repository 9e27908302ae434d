"""The components as a catalogue's folders: its rules, and a pipeline of other people's that is made from them."""

import ast
import datetime
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import must
from must_pipeline.catalogue import write_catalogue
from must_pipeline.cluster.rules import load_cluster
from must_pipeline.files import CLUSTER

ROOT = Path(__file__).parents[2]
FILES = {"__init__.py", "component.py", "component.yaml", "metadata.yaml", "README.md", "OWNERS"}
FOREIGN = """
from kfp import components, dsl, local

load = lambda name: components.load_component_from_file(f"catalogue/components/{name}/component.yaml")
shard, classifier = load("data_processing/shard"), load("training/classifier")

@dsl.pipeline
def other(images: str, classes: str, model: str) -> str:
    here = {"work_uri": "work", "run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER}
    shard(source=images, labels="folder", **here)
    return classifier(classes=classes, model=model, **here).outputs["Output"]

local.init(local.SubprocessRunner(use_venv=False), pipeline_root="runs")
print("MADE", other(images="demo/images/test", classes="demo/classes.yaml", model="demo/model").output)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    write_catalogue(load_cluster(CLUSTER.with_name("clusters") / "gke.yaml"), folder / "catalogue", ["ada", "grace"])
    return folder


def test_each_folder_is_what_the_catalogues_checks_ask_for(folder):
    places = sorted((folder / "catalogue" / "components").glob("*/*"))
    assert {place.name for place in places} == {"shard", "classifier", "train", "evaluate", "export"}
    for place in places:
        assert {path.name for path in place.iterdir()} == FILES
        metadata = yaml.safe_load((place / "metadata.yaml").read_text())
        assert list(metadata) == ["name", "stability", "dependencies", "tags", "lastVerified"]  # in this order
        assert metadata["name"] == place.name and metadata["stability"] in ("experimental", "alpha", "beta", "stable")
        assert isinstance(metadata["lastVerified"], datetime.datetime) and metadata["lastVerified"].tzinfo
        assert (place / "OWNERS").read_text() == "approvers:\n  - ada\n  - grace\n"
        tree = ast.parse((place / "component.py").read_text())
        assert [node.module for node in tree.body if isinstance(node, ast.ImportFrom)] == ["kfp"]
        assert not any(isinstance(node, ast.Import) for node in tree.body)
        (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef))
        (decorator,) = function.decorator_list
        assert isinstance(decorator, ast.Call)
        image = {word.arg: word.value for word in decorator.keywords}["base_image"]
        assert isinstance(image, ast.Constant) and "/must-" in str(image.value)  # a literal, with its registry
        compiled = yaml.safe_load((place / "component.yaml").read_text())
        assert compiled["deploymentSpec"]["executors"][f"exec-{place.name}"]["container"]["image"] == image.value
        rows = re.findall(r"^\| (\w+) \|.*\| .+ \|$", (place / "README.md").read_text(), re.M)
        assert {word.arg for word in function.args.args} <= set(rows), "a parameter without an explanation"


@pytest.mark.slow
def test_a_pipeline_of_other_people_runs_two_of_them(folder):
    must.demo(output=folder / "demo")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "components")))}
    command = [sys.executable, "-c", FOREIGN]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"MADE [0-9a-f]{64}$", done.stdout, re.M)
    assert (folder / "work" / "shards" / "index.json").is_file()
