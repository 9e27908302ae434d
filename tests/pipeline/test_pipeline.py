"""The compiled pipeline: current, reproducible, explained, never answered from a cache; and kfp's local runner."""

import inspect
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from kfp import compiler, components, dsl

from must import __version__, table
from must.base.processes import is_running
from must.table import PODS, import_name
from must_components.components import COMPONENTS
from must_pipeline.cli import COMMANDS
from must_pipeline.cli import main as must_pipeline
from must_pipeline.cluster import ClusterConfig, load_cluster
from must_pipeline.compile import compile_pipeline, load_documents
from must_pipeline.dag import make_label_pipeline
from tests.common import ended, until
from tests.pipeline.compiled import (
    CLUSTER,
    COMPILED,
    LABELLING,
    OF_LABELLING,
    Compiled,
    compile_apart,
    compiled_for,
    longest_path,
)


@pytest.fixture(scope="module")
def compiled():
    return Compiled(COMPILED)


def tasks_of(compiled):
    """Every task that is no group of others."""
    return {name: task for name, task in compiled.tasks.items() if f"exec-{name}" in compiled.platform}


def test_the_committed_pipeline_is_current_and_compiles_byte_for_byte_the_same(tmp_path):
    compile_apart(load_cluster(CLUSTER), tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_bytes() == compiled_for(CLUSTER).read_bytes()
    compile_apart(load_cluster(CLUSTER), tmp_path / "label.yaml", make_label_pipeline)
    assert load_documents(LABELLING.read_text()) == load_documents((tmp_path / "label.yaml").read_text()), (
        "run `make compile`"
    )
    assert load_documents(COMPILED.read_text()) == load_documents(compiled_for(CLUSTER).read_text()), (
        "run `make compile`"
    )


def test_the_stages_of_the_table_are_the_pipelines_and_each_names_its_components_image(compiled):
    assert set(tasks_of(compiled)) == PODS.keys() - OF_LABELLING
    assert set(tasks_of(Compiled(LABELLING))) == {*OF_LABELLING, "summary"}
    for name, component in COMPONENTS.items():
        container = component.component_spec.implementation.container
        assert container.image == f"{table.COMPONENTS[name].image}:{__version__}" and container.args[0] == name


def test_a_components_artifacts_are_parameters_of_its_function_and_what_it_shows_is_not():
    for name, row in table.COMPONENTS.items():
        taken = inspect.signature(import_name(row.function)).parameters.keys()
        assert {*row.reads, *row.writes} <= taken and not {*row.shows, *row.returns} & taken, name


def test_a_component_can_be_loaded_for_a_pipeline_of_other_people(tmp_path):
    shard = COMPONENTS["shard"]
    compiler.Compiler().compile(shard, str(tmp_path / "shard.yaml"))
    loaded = components.load_component_from_file(str(tmp_path / "shard.yaml"))
    assert loaded.component_spec.inputs.keys() == shard.component_spec.inputs.keys() >= {"source", "work_uri"}


def test_every_stage_gets_its_runs_id_and_is_never_cached(compiled):
    """Kubeflow's cache believes in artifacts that are gone, and none but the classifier could ever be found there."""
    for name, task in tasks_of(compiled).items():
        assert not task["cachingOptions"].get("enableCache"), name
        given = task["inputs"]["parameters"]["run_id"]
        assert given["runtimeValue"]["constant"] == "{{$.pipeline_job_uuid}}", name


def test_a_name_that_means_something_else_in_a_stage_than_in_a_run_is_passed_by_hand(compiled):
    """A task takes the run's parameters by name; `split` of this stage is not the run's."""
    given = compiled.tasks["evaluate"]["inputs"]["parameters"]["split"]
    assert given == {"componentInputParameter": "pipelinechannel--champion-split"}


def test_no_more_tasks_and_groups_than_needed_stand_on_the_longest_path(compiled):
    """Each costs ten or twenty seconds, however short it is; without any group but one the run itself takes 30."""
    seconds, path = longest_path(compiled.spec)
    assert path in (
        ["inputs", first, "champion", "train", "evaluate", "export", "promote", "summary"]
        for first in ("shard", "classifier")
    )  # fmt: skip
    assert seconds <= 20 * len(path) + 30
    groups = [name for name, task in compiled.tasks.items() if name not in tasks_of(compiled)]
    assert groups == ["exit-handler-1", "condition-2"]
    # a pod and its driver each, but the exit handler's group has no driver of its own; and the run's driver
    assert 2 * len(tasks_of(compiled)) + len(groups) + 1 == 23 and "gate" not in compiled.tasks


def test_beside_the_group_that_may_be_skipped_a_task_always_runs(compiled):
    """When a task ends, Kubeflow marks the group around it as complete if all in it are over: after a skipped group no
    task would end."""
    around = compiled.spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert around["condition-2"]["triggerPolicy"]["condition"].endswith("== 'train'")
    assert around["is-anything-new"]["dependentTasks"] == around["condition-2"]["dependentTasks"][:1] == ["champion"]


def test_what_a_parameter_may_be_is_a_menu_and_its_default_is_one_of_them(compiled):
    parameters = compiled.spec["root"]["inputDefinitions"]["parameters"]
    choices = {name: one["literals"] for name, one in parameters.items() if "literals" in one}
    assert choices.keys() == {"gate", "labels", "precision"}
    assert choices["gate"] == ["auto", "labelled", "label-free", "none"]
    assert all(parameters[name]["defaultValue"] in values for name, values in choices.items())
    assert all(one.get("description") for one in parameters.values())  # shown on the upload page
    components.load_component_from_text(COMPILED.read_text())  # kfp's own loader takes it


def test_the_whole_stays_far_below_kubeflows_limits(compiled):
    """10,000 bytes of parameters a run (a MySQL column), and etcd's 1.5 MB for the workflow made of it."""
    parameters = compiled.spec["root"]["inputDefinitions"]["parameters"]
    defaults = {name: one.get("defaultValue", "x" * 200) for name, one in parameters.items()}
    assert len(yaml.safe_dump(defaults)) < 2_000
    assert COMPILED.stat().st_size < 100_000


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_flag_of_any_command_is_one_line(command, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["must-pipeline", command, "--cluter", "x"])
    assert ended(capsys, 2, must_pipeline).startswith(f"must-pipeline {command}: --cluter: unknown")


@pytest.fixture
def own_python(monkeypatch):
    """kfp's lightweight components, of which these small pipelines are made, run the first python3, which needs kfp."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def patient(work_uri: str):
    import os
    import signal
    import time
    from pathlib import Path

    def save(number, frame):
        time.sleep(0.5)
        Path(work_uri, "saved").touch()
        print("saved, to go on from here", flush=True)
        raise SystemExit(75)

    signal.signal(signal.SIGTERM, save)
    Path(work_uri, "begun").write_text(str(os.getpid()))
    time.sleep(300)


@dsl.pipeline
def long(work_uri: str):
    patient(work_uri=work_uri)


@pytest.mark.parametrize(
    "number, code, said",
    [
        (signal.SIGTERM, 75, "stopped by SIGTERM; run the same command again to go on"),
        (signal.SIGINT, 130, "interrupted; run the same command again"),
    ],
)
def test_a_stage_ends_before_a_stopped_run_does(tmp_path, own_python, number, code, said):
    """The signal goes to the program alone, as from `kill`."""
    compile_pipeline(ClusterConfig(), tmp_path / "p.yaml", lambda cluster: long)
    (tmp_path / "run.yaml").write_text(f"work_uri: {tmp_path}")
    words = ["--pipeline", "p.yaml", "--parameters", "run.yaml", "--output", "run"]
    command = [sys.executable, "-m", "must_pipeline", "run", *words]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        begun = tmp_path / "begun"
        until(lambda: begun.exists() and begun.read_text(), process.communicate, process=process)
        process.send_signal(number)
        output, error = process.communicate(timeout=120)
    assert (process.returncode, error) == (code, f"must-pipeline run: {said}\n")
    assert (tmp_path / "saved").exists() and not is_running(int(begun.read_text()))
    assert output.endswith("saved, to go on from here\n")


def find_processes(word):
    """Those of which a word of the command line contains `word`."""
    found = [(int(file.parent.name), file) for file in Path("/proc").glob("[0-9]*/cmdline")]
    with suppress(OSError):
        return [pid for pid, file in found if file.exists() and word in file.read_text(errors="replace")]


def test_a_killed_run_leaves_no_stage_behind(tmp_path):
    """Beside which the same command would wait in vain. The first stage reads a file that never comes to its end."""
    os.mkfifo(tmp_path / "classes.txt")
    (tmp_path / "run.yaml").write_text(f"source: {tmp_path}\nclasses: {tmp_path}/classes.txt\n")
    words = ["--pipeline", COMPILED, "--parameters", "run.yaml", "--output", "run"]
    command = [sys.executable, "-m", "must_pipeline", "run", *words]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        until(lambda: find_processes(f'"{tmp_path}/classes.txt"'), process=process)
        process.kill()
    until(lambda: find_processes(f'"{tmp_path}/classes.txt"') == [])
