"""The compiled DAG, run for real through Kubeflow's local runner: promoted, nothing new, stopped, failed."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from must.base.lock import locked
from must.pods.summary import escape
from must.registry.promote import Registry
from must.table import PODS
from must_pipeline.cluster import load_cluster
from must_pipeline.dag import make_label_pipeline
from must_pipeline.run_local import RUN_LOCK
from tests.common import read_csv
from tests.pipeline.compiled import COMPILED, OF_LABELLING, compile_apart

pytestmark = pytest.mark.slow
BEFORE_TRAINING = ["inputs", "shard", "classifier", "champion"]
ALL = [stage for stage in PODS if stage not in OF_LABELLING]


def small_demo(folder):
    """The bundled example with few images and epochs, and a learning rate for them; returns the pipeline's parameters.
    Its model is better than zero-shot for certain on the test images, by about 7 points."""
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
        words = ["--pipeline", COMPILED, "--parameters", file, "--output", output, *flags]
        command = [sys.executable, "-m", "must_pipeline", "run", *words]
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=output.parent)
        self.code, self.log, self.error = result.returncode, result.stdout, result.stderr
        newest = max((output / "runs").glob("*"), default=None)
        self.artifacts = {path.name: path for path in newest.glob("*/*")} if newest else {}
        self.stages = re.findall(r"^== (.*) ==$", self.log, re.MULTILINE)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, small_demo(folder) | {"shard_settings": {"samples_per_shard": 20, "workers": 1}}


@pytest.fixture(scope="module")
def first(demo, tmp_path_factory):
    """A run whose model passes the gate, with two pods for shards; others go on from it, without."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "cluster.yaml").write_text("shard: {pods: 2}")
    compile_apart(load_cluster(folder / "cluster.yaml"), folder / "pipeline.yaml")
    flags = ("--pipeline", folder / "pipeline.yaml")
    return folder / "work", Run(demo[1], folder / "work", *flags)


def latest(work):
    return Registry(str(work / "registry"), "digits").latest()


def test_a_second_run_in_the_same_folder_is_held(demo, tmp_path):
    with locked(str(tmp_path / "work"), RUN_LOCK):
        run = Run(demo[1], tmp_path / "work")
    assert run.code == 73 and "is being written by another `must-pipeline run`" in run.error


def test_a_model_that_passes_the_gate_is_promoted(first, demo):
    work, run = first
    assert run.code == 0, run.log + run.error
    assert sorted(run.stages) == sorted([*ALL, "shard-part", "shard-part"]) and run.stages[-1] == "summary"
    version = latest(work).version
    place = work / "registry" / "digits" / version
    assert {path.name for path in place.iterdir()} == {"bundle", "onnx", "version.json"}
    facts = json.loads((place / "version.json").read_text())
    assert facts["decision"]["passed"] and facts["metrics"]["adapted"]["top1"] > 0.75 and facts["index_revision"] == 0
    assert (work / "latest" / "evaluate" / "report").read_text().startswith("<!doctype html")
    assert "# Gate (labelled): passed" in run.artifacts["reasons"].read_text()
    page = run.artifacts["run_summary"].read_text()
    assert page.startswith(f"# Promoted {version}: ") and ", was " in page and "| promote | done |" in page
    (notes,) = (work / "notes").iterdir()  # one run id for all stages
    stages = {*ALL, "shard-1-of-2", "shard-2-of-2"}
    assert {path.stem for path in notes.glob("*.json")} == stages - {"is-anything-new", "summary"}
    assert "| shard-2-of-2 | done |" in page
    assert (notes / "summary.md").read_text() == page and (notes / "report.html").exists()
    assert "zero-shot  adapted" in run.log and "Executing task" not in run.log  # kfp's own lines


def test_kubeflows_page_gets_figures_a_confusion_matrix_and_where_a_model_comes_from(first):
    work, _ = first
    metadata = {
        f"{path.parent.name}.{name}": items["artifacts"][0]["metadata"]
        for path in (work / "latest").glob("*/executor_output.json")
        for name, items in json.loads(path.read_text()).get("artifacts", {}).items()
    }
    assert {"accuracy", "accuracy_gain", "accuracy_zero_shot"} <= set(metadata["evaluate.figures"])
    matrix = metadata["evaluate.confusion"]["confusionMatrix"]
    assert len(matrix["annotationSpecs"]) == len(matrix["rows"]) == 10
    model = metadata["export.onnx"]
    assert model["accuracy"] == metadata["evaluate.figures"]["accuracy"] and "git_revision" in model
    assert model["index_revision"] == 0 and len(model["index_sha256"]) == 64
    assert {"steps", "images_per_s"} <= set(metadata["train.training"])


def test_with_nothing_new_the_run_ends_early_and_green(first, demo):
    work, _ = first
    run = Run(demo[1] | {"append": True, "only_new": True}, work)
    assert run.code == 0 and sorted(run.stages) == sorted([*BEFORE_TRAINING, "is-anything-new", "summary"])
    page = run.artifacts["run_summary"].read_text()
    assert page.startswith("# Nothing new: this data with these settings was promoted as")
    assert "The DAG ran in" in run.log and "10 classes, made by an earlier run" in page


def test_new_images_are_appended_and_a_model_that_the_gate_stops_leaves_the_champion(first, demo):
    work, _ = first
    champion = latest(work)
    folder = demo[0] / "images" / "unlabeled"
    for file in (demo[0] / "later").iterdir():
        file.rename(folder / file.name)
    scheduled = {"append": True, "only_new": True, "epochs": 1, "gate_settings": {"min_gain": 0.5}}
    run = Run(demo[1] | scheduled, work)
    assert run.code == 0 and sorted(run.stages) == sorted(ALL), run.error
    assert latest(work) == champion
    reasons, page = run.artifacts["reasons"].read_text(), run.artifacts["run_summary"].read_text()
    assert f"Compared with: the champion, {champion.version}" in reasons and "`STOP  top1 gained " in reasons
    assert not json.loads(run.artifacts["decision"].read_text())["passed"]
    assert run.artifacts["onnx"].read_text() == "not made\n"
    assert "Not promoted: stopped by the gate" in run.log and "| export | done |" in page and "revision 1" in page


def test_a_failing_stage_fails_the_run_and_the_summary_says_why(demo, tmp_path):
    run = Run(demo[1] | {"source": f"{tmp_path}/nowhere"}, tmp_path / "run")
    assert run.code == 2
    why = f"source {tmp_path}/nowhere: there is no such folder or file"
    assert f"must inputs: {why}\n" in run.log
    assert "the stage 'inputs' failed" in run.error and "Traceback" not in run.error
    page = run.artifacts["run_summary"].read_text()
    assert page.startswith("# Run failed: inputs: the input is wrong\n")
    assert f"**Why**: {escape(why)} · wrong input (exit code 2)" in page
    assert "shard" not in run.stages  # before an image is read
    assert "must-pipeline run --pipeline" in page and "must inputs: " in page.split("```")[1]


def test_the_second_pipeline_labels_in_parts_and_only_what_is_new(first, demo, tmp_path):
    """With the champion of the first one."""
    images = tmp_path / "images"
    shutil.copytree(demo[0] / "images" / "test", images)
    (tmp_path / "cluster.yaml").write_text("label: {pods: 2}\n")
    compile_apart(load_cluster(tmp_path / "cluster.yaml"), file := tmp_path / "label.yaml", make_label_pipeline)
    table, registry = str(tmp_path / "labels.csv"), str(first[0] / "registry")
    parameters = {"source": str(images), "output": table, "registry_uri": registry, "model_name": "digits"}
    number = len(list(images.rglob("*.png")))
    for new in (number, 1):
        run = Run(parameters | {"only_new": new == 1}, tmp_path / "run", "--pipeline", file)
        assert run.code == 0 and f"Labelled {number if new > 1 else number + 1:,} images: {new:,} new" in run.log
        shutil.copy(next(images.rglob("0*.png")), images / "new.png")
    rows = [row for part in sorted((tmp_path / "labels.csv.parts").iterdir()) for row in read_csv(part)]
    assert len({row["image"] for row in rows}) == len(rows) == number + 1
