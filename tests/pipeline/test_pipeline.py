"""The compiled pipeline: current, reproducible, and run for real through Kubeflow's local runner."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.compile import COMPILED, compile_pipeline
from pipeline.console import StageOutput

ROOT = Path(__file__).parents[2]


def documents(path):
    return list(yaml.safe_load_all(Path(path).read_text()))


def test_the_committed_pipeline_is_current_and_compiles_byte_for_byte_the_same(tmp_path):
    for name in ("a.yaml", "b.yaml"):
        compile_pipeline(tmp_path / name)
    assert (tmp_path / "a.yaml").read_bytes() == (tmp_path / "b.yaml").read_bytes()
    assert documents(COMPILED) == documents(tmp_path / "a.yaml"), "run `make compile`"


def test_training_is_never_cached_and_is_tried_again():
    (spec, *_) = documents(COMPILED)
    tasks = spec["root"]["dag"]["tasks"]
    assert set(tasks) == {"shard", "classifier", "train", "evaluate", "export"}
    assert not tasks["train"]["cachingOptions"].get("enableCache")
    assert tasks["train"]["retryPolicy"]["maxRetryCount"] == 3
    for stage in ("train", "evaluate"):  # the data's checksum is an input: other data, another cache key
        assert "taskOutputParameter" in tasks[stage]["inputs"]["parameters"]["index_sha256"]


def test_every_parameter_is_explained_on_the_upload_page():
    (spec, *_) = documents(COMPILED)
    for name, parameter in spec["root"]["inputDefinitions"]["parameters"].items():
        assert parameter.get("description"), name


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    subprocess.run([sys.executable, "-m", "must", "demo", "--output", folder], check=True, capture_output=True)
    parameters = yaml.safe_load((folder / "pipeline.yaml").read_text())
    parameters["settings"] = {"epochs": 2}
    (folder / "short.yaml").write_text(yaml.safe_dump(parameters))
    return folder


def run_local(parameters, output, cwd):
    return subprocess.run(
        [sys.executable, ROOT / "pipeline" / "run_local.py", "--parameters", parameters, "--output", output],
        capture_output=True, text=True, check=False, cwd=cwd,
    )  # fmt: skip


def test_the_compiled_dag_runs_from_images_to_onnx(demo, tmp_path):
    result = run_local(demo / "short.yaml", tmp_path / "run", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    for stage in ("shard", "classifier", "train", "evaluate", "export"):
        assert f"== {stage} ==" in result.stdout
    assert "zero-shot  adapted" in result.stdout and "executor_input" not in result.stdout
    latest = tmp_path / "run" / "latest"
    assert (latest / "evaluate" / "report").read_text().startswith("<!doctype html")
    predict = result.stdout.split("Classify an image with it:")[1].split("IMAGE")[0].split()
    image = next((demo / "images" / "test" / "seven").glob("*.png"))
    predicted = subprocess.run([*predict, image], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert predicted.returncode == 0 and image.name in predicted.stdout


def test_a_failing_stage_fails_the_run_with_its_own_line(demo, tmp_path):
    parameters = yaml.safe_load((demo / "short.yaml").read_text()) | {"classes": "nowhere.yaml"}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(parameters))
    result = run_local(tmp_path / "wrong.yaml", tmp_path / "run", tmp_path)
    assert result.returncode == 2
    assert "must classifier: --classes nowhere.yaml: no such file" in result.stdout
    assert "the stage 'classifier' failed" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("text, message", [("sorce: x\n", "no parameter 'sorce'"), ("- 1\n", "expected 'name: value'")])
def test_wrong_parameters_are_named(tmp_path, text, message):
    (tmp_path / "p.yaml").write_text(text)
    result = run_local(tmp_path / "p.yaml", tmp_path / "run", tmp_path)
    assert result.returncode == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1


def test_the_console_keeps_a_stages_lines_and_drops_the_runners(capsys):
    output = StageOutput(sys.stdout)
    output.write(
        "16:19:35.687 - INFO - Executing task \x1b[96m'train'\x1b[0m\n"
        "16:19:35.687 - INFO - Streamed logs:\n\n"
        "    [KFP Executor 2026 INFO]: Got executor_input:\n    {\n        \"a\": {}\n    }\n"
        "    step 1/2\n\n"
        "16:19:36.000 - INFO - Task 'train' outputs:\n    bundle: Model\n"
        "16:19:36.000 - ERROR - Task 'train' finished with status FAILURE\n"
    )  # fmt: skip
    assert capsys.readouterr().out == "\n== train ==\nstep 1/2\nTask 'train' finished with status FAILURE\n"
