"""The compiled DAG, each stage in its image, through Kubeflow's local DockerRunner."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import docker
import pytest
import yaml

from must.api.stages import call
from must_pipeline.local_runner import run_container
from must_pipeline.stages import STAGES
from tests.containers.engine import UID, engine, image, own

SETTINGS = {"epochs": 2, "workers": 1}
pytestmark = pytest.mark.usefixtures("docker_host")


def command(folder: Path, demo: Path, **changes) -> list[str]:
    """The local run of the example in the folder `run`, as a user starts it, with other parameters."""
    parameters, output = folder / "parameters.yaml", folder / "run"
    values = yaml.safe_load((demo / "pipeline.yaml").read_text()) | {"preset": "digits"} | changes
    parameters.write_text(yaml.safe_dump(values))
    options = ["--parameters", str(parameters), "--output", str(output), "--runner", "docker"]
    if os.getuid() == 0:  # as somebody who is not root
        (output / "runs").mkdir(parents=True)
        own(output)
        options += ["--user", f"{UID}:0"]
    return [sys.executable, "-m", "must_pipeline", "run", *options]


def metrics(output: Path) -> dict:
    return json.loads((output / "latest" / "evaluate" / "details" / "metrics.json").read_text())


def containers_of(output: Path, *options: str) -> list[str]:
    """Of this run; other tests have theirs at the same time."""
    return engine("ps", "--quiet", "--filter", f"volume={output}", *options).stdout.split()


def made_here(run: Path, folder: Path) -> dict:
    """Metrics of the same training, undisturbed, and the same evaluation, by the packages of this environment."""
    shards, classifier = str(run / "shards"), str(run / "latest" / "classifier" / "weights")
    call("train", shards=shards, classifier=classifier, output=str(folder / "model"), preset="digits", **SETTINGS)
    values = {"model": str(folder / "model"), "baseline": classifier, "output": str(folder / "report")}
    return call("evaluate", shards=shards, workers=1, **values).to_dict()


def same(ours: dict, theirs: dict) -> None:
    for model in ("baseline", "adapted"):
        for key, value in theirs[model].items():
            if isinstance(value, float):
                assert ours[model][key] == pytest.approx(value, abs=2e-3), f"{model} {key}"


def test_each_stage_in_its_image_gives_what_it_gives_here(demo, tmp_path):
    """Its training is stopped once, is tried again, and goes on."""
    output = tmp_path / "run"
    words = command(tmp_path, demo, settings=SETTINGS | {"checkpoint_every": 2}, serve="write")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        deadline = time.monotonic() + 900
        while not list(output.glob("checkpoints/*/step-*.json")):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
            time.sleep(0.2)
        (running,) = containers_of(output)
        engine("stop", "--time", "60", running)
        text, _ = process.communicate(timeout=1500)
    assert process.returncode == 0, text
    if folder := os.environ.get("TRANSCRIPTS"):
        Path(folder, "dag.txt").write_text(text)
    assert "run the same command to go on" in text and "going on after step" in text
    for stage in set(STAGES) - {"close"}:  # a run that promotes asks nobody
        assert f"== {stage} ==" in text
    same(metrics(output), made_here(output, tmp_path / "here"))
    artifacts = list((output / "latest").resolve().glob("*/*"))
    assert artifacts and all(path.stat().st_uid == UID for path in artifacts)
    description = json.loads((output / "latest" / "train" / "bundle" / "model.json").read_text())
    inside = json.loads(engine("image", "inspect", image("must-train")).stdout)[0]["Config"]["Labels"]
    assert description["provenance"]["git_revision"] == inside["org.opencontainers.image.revision"]
    assert not containers_of(output, "--all"), "containers were left behind"


def test_a_missing_image_is_named():
    with pytest.raises(ValueError, match=r"localhost:1/nobody:1 is not here .* make images"):
        run_container(docker.from_env(), "localhost:1/nobody:1", ["true"], {})


def test_a_failing_component_fails_the_run(demo, tmp_path):
    """kfp's own DockerRunner would go on: the engine has removed the container when it asks for the exit code."""
    words = command(tmp_path, demo, classes=str(demo / "classes-that-are-not-there.yaml"))
    result = subprocess.run(words, capture_output=True, text=True, check=False, timeout=1500)
    assert result.returncode == 2
    assert "no such file" in result.stdout and "the stage 'inputs' failed" in result.stderr
    assert "Traceback" not in result.stderr and "== train ==" not in result.stdout
