"""The compiled pipeline: current, reproducible, explained, never answered from a cache; and kfp's local runners."""

import inspect
import re
import sys

import kfp
import pytest
import yaml
from kfp import compiler, components, dsl

from must import __version__
from must_components import components as our_components
from must_components.components import shard
from must_pipeline.cli import COMMANDS
from must_pipeline.cli import main as must_pipeline
from must_pipeline.cluster.rules import load_cluster
from must_pipeline.compile import compile_pipeline
from must_pipeline.files import CLUSTER, COMPILED, documents
from must_pipeline.local_runner import StageOutput, as_first_process, local_paths
from must_pipeline.run_local import run_local
from must_pipeline.stages import STAGES
from tests.common import ended
from tests.pipeline.compiled import Compiled, compile_apart, compiled_for
from tests.pipeline.conftest import refused


@pytest.fixture(scope="module")
def compiled():
    return Compiled(COMPILED)


def tasks_of(compiled):
    """Every task that is no group of others."""
    return {name: task for name, task in compiled.tasks.items() if f"exec-{name}" in compiled.platform}


def parse_stage(task):
    """The three ends that only say that nothing follows are tasks of one stage."""
    return re.sub(r"-\d+$", "", task)


def test_the_committed_pipeline_is_current_and_compiles_byte_for_byte_the_same(tmp_path):
    compile_apart(load_cluster(CLUSTER), tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_bytes() == compiled_for(CLUSTER).read_bytes()
    assert documents(COMPILED.read_text()) == documents(compiled_for(CLUSTER).read_text()), "run `make compile`"


def test_the_stages_of_the_table_are_the_pipelines_and_each_names_its_components_image(compiled):
    assert set(map(parse_stage, tasks_of(compiled))) == set(STAGES)
    for name, row in STAGES.items():
        component = getattr(our_components, name)
        assert component.component_spec.implementation.container.image == f"{row.image}:{__version__}", name


def test_a_component_can_be_loaded_for_a_pipeline_of_other_people(tmp_path):
    compiler.Compiler().compile(shard, str(tmp_path / "shard.yaml"))
    loaded = components.load_component_from_file(str(tmp_path / "shard.yaml"))
    assert loaded.component_spec.inputs.keys() == shard.component_spec.inputs.keys() >= {"source", "work_uri"}


def test_the_example_schedule_trains_as_the_example_run():
    run, schedule = (yaml.safe_load(CLUSTER.with_name(f"{name}.yaml").read_text()) for name in ("run", "schedule"))
    assert schedule["parameters"] == run | {"append": True, "only_new": True}


def test_every_stage_gets_its_runs_id_is_retried_and_never_cached(compiled):
    """Kubeflow's cache believes in artifacts that are gone, and none but the classifier could ever be found there."""
    for name, task in tasks_of(compiled).items():
        assert not task["cachingOptions"].get("enableCache"), name
        retried = STAGES[parse_stage(name)].retried
        assert (task.get("retryPolicy", {}).get("maxRetryCount") == 3) is retried
        assert compiled.environment(name).get("MUST_RETRIES") == ("3,60,2" if retried else None)
        if parse_stage(name) != "close":  # it leaves no note
            given = task["inputs"]["parameters"]["run_id"]
            assert given["runtimeValue"]["constant"] == "{{$.pipeline_job_uuid}}", name


def test_every_group_ends_in_something_that_runs(compiled):
    """Kubeflow takes a group for running for ever whose last step is a skipped condition: each has another way."""
    components = compiled.spec["components"]
    branches = [one["dag"]["tasks"] for name, one in components.items() if "condition-branches" in name]
    assert len(branches) == 3
    for ways in branches:
        conditions = [way["triggerPolicy"]["condition"] for way in ways.values()]
        *others, last = sorted(conditions, key=lambda one: one.count("!("))
        asked = [one.rsplit(" && ", 1)[-1] for one in others]
        assert last == " && ".join(f"!({one})" for one in asked)  # what is left when no other way was taken
    assert sum(bool(re.fullmatch(r"condition-\d+", name)) for names in compiled.groups for name in names) == 6


def test_what_a_parameter_may_be_is_a_menu_and_its_default_is_one_of_them(compiled):
    parameters = compiled.spec["root"]["inputDefinitions"]["parameters"]
    choices = {name: one["literals"] for name, one in parameters.items() if "literals" in one}
    assert choices.keys() == {"gate", "labels", "precision", "serve"}
    assert choices["gate"] == ["auto", "labelled", "label-free", "none"]
    assert choices["serve"] == ["none", "write", "apply"]
    assert all(parameters[name]["defaultValue"] in values for name, values in choices.items())
    assert all(one.get("description") for one in parameters.values())  # shown on the upload page
    components.load_component_from_text(COMPILED.read_text())  # kfp's own loader takes it


def test_the_whole_stays_far_below_kubeflows_limits(compiled):
    """10,000 bytes of parameters a run (a MySQL column), and etcd's 1.5 MB for the workflow made of it."""
    parameters = compiled.spec["root"]["inputDefinitions"]["parameters"]
    defaults = {name: one.get("defaultValue", "x" * 200) for name, one in parameters.items()}
    assert len(yaml.safe_dump(defaults)) < 2_000
    assert COMPILED.stat().st_size < 100_000


@pytest.mark.parametrize("indent", ["    ", "        "], ids=["a stage", "in a loop"])
def test_the_console_keeps_a_stages_lines_and_drops_the_runners(indent, capsys):
    StageOutput(sys.stdout).write(
        "16:19:35.687 - INFO - Executing task \x1b[96m'train'\x1b[0m\n"
        "16:19:35.687 - INFO - Streamed logs:\n\n"
        f"{indent}[KFP Executor 2026 INFO]: Got executor_input:\n"
        f"{indent}{{\n{indent}    \"a\": {{\n{indent}    }}\n{indent}}}\n"
        f"{indent}step 1/2\n\n"
        "16:19:36.000 - INFO - Task 'train' outputs:\n    bundle: Model\n"
        "16:19:36.000 - ERROR - Task 'train' finished with status FAILURE\n"
    )  # fmt: skip
    assert capsys.readouterr().out == "\n== train ==\nstep 1/2\nTask 'train' finished with status FAILURE\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_flag_of_any_command_is_one_line(command, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["must-pipeline", command, "--cluter", "x"])
    assert ended(capsys, 2, must_pipeline).startswith(f"must-pipeline {command}: --cluter: unknown")


def test_without_an_engine_it_is_one_line(tmp_path, must_pipeline, monkeypatch, capsys):
    (tmp_path / "p.yaml").write_text("source: images\nclasses: imagenet\n")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    words = ["--runner", "docker", "--parameters", tmp_path / "p.yaml", "--output", tmp_path / "run"]
    line = refused(capsys, must_pipeline, "run", *words)
    assert f"no container engine answers at unix://{tmp_path}/no.sock (DOCKER_HOST)" in line


def test_python_takes_the_place_of_the_shell_in_every_stage():
    """If kfp compiles another command one day, this fails; the signal would be lost in silence."""
    (spec, *_) = documents(COMPILED.read_text())
    commands = [e["container"]["command"] for e in spec["deploymentSpec"]["executors"].values() if "container" in e]
    assert commands
    for command in commands:
        changed = as_first_process(command)
        assert sum(" exec python3 " in part for part in changed) == 1
        assert [part.replace(" exec python3 ", " python3 ") for part in changed] == command


@pytest.mark.parametrize(
    "value, expected",
    [
        ("images", ["images"]),
        ("images/x-{000..003}.tar", ["images"]),
        ({"pretrained": "images/w.pt", "epochs": 2}, ["images/w.pt"]),
        ("gs://bucket/images", []),
        ("ViT-B-16-quickgelu", []),
        ("", []),
        (2, []),
    ],
)
def test_the_local_paths_of_a_parameter(tmp_path, monkeypatch, value, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "w.pt").touch()
    assert list(local_paths(value)) == [tmp_path / path for path in expected]


ESCAPE = (  # an output that is a program where it is put into a condition as it is
    "x' == 'y' or [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close'][0]"
    ".__init__.__globals__['system']('touch {}') == 0 or 'x"
)


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def say(text: str) -> str:
    return text


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def mark(path: str):
    from pathlib import Path

    Path(path).write_text("reached")


@dsl.pipeline
def conditions(text: str, path: str):
    with dsl.If(say(text=text).output == "go"):
        mark(path=path)


def test_the_local_runner_takes_an_output_in_a_condition_as_data(tmp_path):
    """GHSA-rhjm-6347-5x33."""
    compiler.Compiler().compile(conditions, str(tmp_path / "p.yaml"))
    for text, reached in ((ESCAPE.format(tmp_path / "escaped"), False), ("go", True)):
        run_local(tmp_path / "p.yaml", {"text": text, "path": str(tmp_path / "mark")}, tmp_path / "run", True, None)
        assert (tmp_path / "mark").exists() is reached and not (tmp_path / "escaped").exists()


def test_a_retry_policy_is_set_or_refused_in_one_line(tmp_path):
    (tmp_path / "cluster.yaml").write_text("retries: {policy: Always}")
    cluster = load_cluster(tmp_path / "cluster.yaml")
    if "policy" not in inspect.signature(dsl.PipelineTask.set_retry).parameters:
        with pytest.raises(ValueError, match=f"retries.policy Always: the installed kfp {kfp.__version__} cannot set"):
            compile_pipeline(cluster, tmp_path / "p.yaml")
        return
    compile_pipeline(cluster, tmp_path / "p.yaml")
    assert "Always" in yaml.safe_dump(Compiled(tmp_path / "p.yaml").tasks["train"]["retryPolicy"])
