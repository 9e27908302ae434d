"""A job that fails, waits in a queue or takes too long, and a launcher that is stopped."""

import signal
import subprocess
import threading
import time

import pytest

from must.runtime.notes import read_notes
from must_components.train_job import follow, launch
from must_components.train_job.jobs import Jobs
from must_components.train_job.launch import seconds_of
from tests.components.launching import SUMMARY, completes, exit_code, fails, launcher, nodes, train


def test_a_failed_job_is_an_error_with_its_last_lines_and_events(api, work, capfd):
    api.on_create = fails("step 1", "RuntimeError: CUDA out of memory")
    assert exit_code(work) == 1
    error = capfd.readouterr().err
    assert "failed (ReachedMaxRestarts: jobset failed" in error and "Last lines of node 0, exit code 1:" in error
    assert "  RuntimeError: CUDA out of memory" in error
    assert "OOMKilled: Container node was killed" in error and "goes on from the newest checkpoint" in error
    (note,) = read_notes(str(work))
    assert (note.state, note.code) == ("failed", 1)


def test_wrong_input_is_said_by_the_code_and_tried_once(api, work, capfd):
    api.on_create = fails("must train: --lr -1: must be above 0", code=2)
    with pytest.raises(SystemExit) as exit_:
        train(work)
    error = capfd.readouterr().err
    assert exit_.value.code == 2 and "must train: --lr -1: must be above 0" in error and "A retry" not in error
    assert [pod.restarts for pod in next(iter(api.pods.values()))] == [0]


def test_the_node_that_explains_a_failure_is_shown_not_the_one_that_left_with_it(api, work, capfd):
    def on_create(api, name):
        first, second = api.pods[name]
        first.say("a peer is gone")
        second.say("RuntimeError: CUDA error")
        first.code, first.phase = 75, "Failed"
        api.exit(name, 1, 1)

    api.on_create = on_create
    assert exit_code(work) == 1
    assert "Last lines of node 1, exit code 1:\n  RuntimeError: CUDA error" in capfd.readouterr().err


def test_nodes_that_stopped_with_their_work_saved_are_no_error_of_the_program(api, work):
    api.on_create = fails("saved", code=75)
    assert exit_code(work) == 75


def test_under_another_runtime_crashes_are_repeated_in_place_and_their_lines_still_shown(api, work, capfd, monkeypatch):
    """As with Trainer's own torch-distributed: the pods are gone at the limit, and so are their logs."""

    def show(line, **how):
        print(line, **how)
        shown.append(line)

    def on_create(api, name):
        def live():
            for life in range(7):
                lines = [f"life {life} line {number}" for number in range(3)]
                api.pods[name][0].say(*lines)
                while lines[-1] not in shown:
                    time.sleep(0.01)
                api.exit(name, 0, 1)

        threading.Thread(target=live, daemon=True).start()

    shown = []
    monkeypatch.setattr(follow, "print", show, raising=False)
    api.on_create = on_create
    assert exit_code(work, nodes=nodes() | {"runtime": "torch-distributed"}) == 1
    captured = capfd.readouterr()
    assert {f"life {life} line {number}" for life in range(7) for number in range(3)} <= set(captured.out.splitlines())
    assert "was restarted in place]" in captured.out
    assert "failed (FailedJobs" in captured.err and "Last lines of rank 0:" in captured.err
    assert "  life 6 line 2" in captured.err


def test_gpus_of_any_maker_are_followed_to_the_end(api, work):
    api.on_create = completes(work)
    assert train(work, nodes=nodes() | {"accelerator": "amd.com/gpu", "cpu": ""}).summary == SUMMARY
    limits = api.created[0]["spec"]["trainer"]["resourcesPerNode"]["limits"]
    assert limits["amd.com/gpu"] == "8" and "cpu" not in limits


def test_a_job_that_takes_too_long_is_deleted_and_its_checkpoints_stay(api, work, capfd):
    checkpoints = work / "checkpoints" / "x"
    checkpoints.mkdir(parents=True)
    assert exit_code(work, nodes=nodes() | {"timeout": 1}) == 1 and len(api.deleted) == 1 and checkpoints.exists()
    assert "not done after 1 s; deleting the TrainJob" in capfd.readouterr().err


def test_a_job_that_somebody_deletes_is_an_error_that_may_be_tried_again(api, work, capfd):
    api.on_create = lambda api, name: (api.jobs.pop(name), api.sets.pop(name), api.pods.pop(name))
    assert exit_code(work) == 1 and "was deleted by another program; its checkpoints stay" in capfd.readouterr().err


def test_the_deadline_that_trainer_saw_first_is_the_reason(api, work, capfd):
    api.on_create = lambda api, name: api.exceed_deadline(name)
    assert exit_code(work) == 1 and "failed (DeadlineExceeded: deadline exceeded)" in capfd.readouterr().err


def test_time_in_the_queue_is_not_time_of_training(api, work, capfd):
    """Queued for longer than the limit; then it is admitted and completes."""
    api.queued = True
    api.on_start = completes(work)

    def on_create(api, name):
        api.jobs[name]["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"
        threading.Thread(target=admit, args=(name,), daemon=True).start()

    def admit(name):
        while sum(method == "GET" and path.endswith(name) for method, path in api.calls) < 5:
            time.sleep(0.01)
        api.resume(name)

    api.on_create = on_create
    assert train(work, nodes=nodes() | {"timeout": 3600}).summary == SUMMARY
    assert "waits in its queue; its time does not count yet" in capfd.readouterr().out
    (job,) = api.jobs.values()
    assert seconds_of(job) < 3600


@pytest.fixture
def run(api, monkeypatch):
    """The specification of the run whose pod the launcher is in."""
    monkeypatch.setenv("KFP_POD_NAME", "launcher")
    api.launchers["launcher"] = {
        "apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "main"}]},
        "metadata": {"name": "launcher", "labels": {"workflows.argoproj.io/workflow": "must-x1"}},
    }  # fmt: skip
    api.workflows["must-x1"] = {"metadata": {"name": "must-x1"}, "spec": {}}
    return api.workflows["must-x1"]["spec"]


def test_a_launcher_whose_pod_is_stopped_leaves_the_job_to_the_next_one(api, work, run):
    with launcher(work, subprocess.PIPE, index_sha256="sha", settings={}, nodes=nodes()) as process:
        try:
            assert "submitted the TrainJob" in process.stdout.readline()
            process.send_signal(signal.SIGTERM)
            _, error = process.communicate(timeout=200)
        finally:
            process.kill()
    assert process.returncode == 75 and len(api.jobs) == 1 and not api.deleted
    assert "continues; it stops by itself after" in error


@pytest.mark.parametrize(
    "run, over",
    [
        ({"activeDeadlineSeconds": 0}, True),
        ({"shutdown": "Terminate"}, True),
        (None, True),
        ({}, False),
        ({"activeDeadlineSeconds": 86400}, False),
    ],
)
def test_a_run_is_over_when_it_is_terminated_shut_down_or_deleted(api, run, over):
    """By Kubeflow, with Argo's tool, with kubectl."""
    if run is not None:
        api.workflows["must-x1"] = {"metadata": {"name": "must-x1"}, "spec": run}
    assert Jobs().is_over("must-x1") is over


@pytest.mark.parametrize("refused, starts", [(False, 1), (True, 3)])
def test_a_run_that_is_terminated_takes_its_job_with_it(api, work, run, monkeypatch, capfd, refused, starts):
    """Trainer makes the JobSet anew: without the right to suspend the job its pods start again, twice."""

    def terminated(self):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(launch.Launch, "wait", terminated)
    run["activeDeadlineSeconds"], api.refuse_patch = 0, refused
    assert exit_code(work) == 75 and len(api.deleted) == 1
    assert "the run is being stopped: deleted the TrainJob" in capfd.readouterr().err
    for _ in range(20):
        for name in list(api.jobs):
            api.one("GET", name, {})
    assert not api.jobs and not api.sets and not api.pods and len(api.starts) == starts
