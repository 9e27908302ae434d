"""The summary of a run that was ended while its TrainJob trained, or whose stage could not leave its last note."""

import json

import pytest

from must.base import storage
from must.runtime.notes import Facts, Note, content_of, read_notes
from must.runtime.places import WorkUri
from must.runtime.summary import summarize
from must_components.cluster import Cluster
from must_components.last_look import last_look
from tests.components.launching import completes, train

NODE = "must-x(0).root(0).exit-handler-1(0).condition-2(0).train(0).executor(0)"


@pytest.fixture
def pod(api, tmp_path, monkeypatch):
    """The summary's pod: ended(deadline, message) says what its workflow is like."""
    for name, text in (("namespace", "vision"), ("token", "t")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(Cluster, "of_this_pod", lambda: Cluster(api.url, tmp_path))
    monkeypatch.setenv("KFP_POD_NAME", "summary-pod")
    api.launchers["summary-pod"] = {"metadata": {"labels": {"workflows.argoproj.io/workflow": "must-x"}}}

    def ended(deadline=None, message="main: Error (exit code 143)"):
        node = {"type": "Pod", "name": NODE, "phase": "Failed", "message": message}
        annotations = {"pipelines.kubeflow.org/run_name": "monday"}
        api.workflows["must-x"] = {
            "metadata": {"annotations": annotations}, "spec": {"activeDeadlineSeconds": deadline},
            "status": {"nodes": {"1": node}},
        }  # fmt: skip

    return ended


def leave(work, **values):
    note = Note("train", lines=["step 3"], **values)
    place = storage.join(WorkUri(str(work)).notes("r1"), "train.json")
    storage.write_bytes(place, json.dumps(content_of(note)).encode())


def page(work, more=()):
    return summarize(str(work), "r1", "FAILED", "again", more=more).to_markdown()


@pytest.fixture
def job(api, work, pod, monkeypatch, request):
    """The name of a job that trains, and whose launcher is gone without an exit code."""
    monkeypatch.setenv("MUST_RUN_ID", getattr(request, "param", "r1"))
    pod()
    api.on_create = completes(work)
    train(work, model_name="digits-v2.")
    name = api.created[0]["metadata"]["name"]
    api.jobs[name]["status"] = {}
    return name


def test_the_job_says_whose_it_is_and_the_note_names_the_job(api, work, job):
    metadata = api.jobs[job]["metadata"]
    assert metadata["labels"]["must/model"] == "digits-v2"  # a label ends in a letter or a digit
    assert metadata["labels"]["pipeline/runid"] == "r1" and metadata["annotations"]["must/run"] == "monday"
    (note,) = [note for note in read_notes(str(work), "r1") if note.stage == "train"]
    assert note.facts.trainjob == job


def look_again(work, pod, job, deadline=0):
    """The summary's lines about the job of a run that was ended, and whose launcher had no time."""
    leave(work, signalled=1.0, facts=Facts(trainjob=job))
    pod(deadline=deadline)
    return last_look(str(work), "r1")


def test_a_run_that_is_ended_takes_its_job_along_also_when_the_launcher_had_no_time(api, work, pod, job):
    assert look_again(work, pod, job, None) == [] and not api.deleted  # only the pod was taken: it trains on
    lines = look_again(work, pod, job)
    assert lines == [f"{job} was ended; its checkpoints stay"]
    assert api.deleted == [job] and api.jobs[job]["spec"]["suspend"] is True
    shown = page(work, lines)
    assert shown.startswith("# Run stopped from outside, during train") and f"- **TrainJob**: {lines[0]}" in shown


@pytest.mark.parametrize("job", ["r2"], indirect=True)
def test_a_job_that_another_run_waits_for_by_now_trains_on(api, work, pod, job):
    (line,) = look_again(work, pod, job)
    assert "belongs to the run r2 now and was not ended" in line and not api.deleted


def test_a_job_that_may_not_be_ended_is_named_with_the_command(api, work, pod, job, monkeypatch):
    answer = api.answer
    monkeypatch.setattr(api, "answer", lambda method, *rest: (403, {}) if method == "DELETE" else answer(method, *rest))
    (line,) = look_again(work, pod, job)
    assert line.endswith(f"still runs (403): kubectl delete trainjob {job} -n vision")


@pytest.mark.parametrize(
    "message, headline, why",
    [
        ("main: Error (exit code 1)", "an error", "its pod ended by itself (main: Error (exit code 1))"),
        ("The node was low on resource: memory.", "its pod is gone", "The node was low on resource: memory."),
    ],
)  # fmt: skip
def test_a_stage_without_a_last_note_is_told_in_the_clusters_words(work, pod, message, headline, why):
    pod(message=message)
    leave(work)
    assert last_look(str(work), "r1") == []
    shown = page(work)
    assert shown.startswith(f"# Run failed: train: {headline}") and f"**Why**: {why}" in shown
    (note,) = read_notes(str(work), "r1")
    assert (note.state == "failed") is ("exit code 1" in message) and note.lines[0] == "step 3"


@pytest.mark.parametrize("trouble", ["no workflow", "no answer", "no pod"])
def test_a_cluster_that_says_nothing_stops_no_page(api, work, pod, monkeypatch, tmp_path, trouble):
    pod()
    leave(work)
    if trouble == "no answer":
        monkeypatch.setattr(Cluster, "of_this_pod", lambda: Cluster("http://127.0.0.1:9", tmp_path))
    api.workflows.clear()
    if trouble == "no pod":
        monkeypatch.delenv("KFP_POD_NAME")
    assert last_look(str(work), "r1") == []
    assert "its pod is gone" in page(work)
