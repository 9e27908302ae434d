"""The summary of a run whose TrainJob may still train, or whose stage could not leave its last note."""

import pytest

from must.pods.notes import Facts, Note, read_notes, write_note
from must.pods.summary import summarize
from must_components.cluster import KubernetesApi, settle_run
from tests.components.conftest import completes, train

NODE = "must-x(0).root(0).exit-handler-1(0).condition-2(0).train(0).executor(0)"


def end(run, message="main: Error (exit code 143)"):
    run["status"] = {"nodes": {"1": {"type": "Pod", "name": NODE, "phase": "Failed", "message": message}}}


def leave(work, **values):
    write_note(str(work), "r1", Note("train", lines=["step 3"], **values))


def page(work, more=()):
    return summarize(str(work), "r1", "again", more=more).to_markdown()


@pytest.mark.parametrize(
    "change, state, said",
    [
        ({}, "running", "was deleted; its checkpoints stay"),
        ({}, "done", None),
        ({"owner": "r2"}, "running", "belongs to the run r2 and was not deleted"),
        ({"refused": 403}, "running", "still runs (403): kubectl delete trainjob {job} -n vision"),
    ],
    ids=["its launcher had no time", "complete", "another run's", "no permission"],
)
def test_the_end_of_a_run_deletes_its_job_and_no_other(api, work, run, change, state, said):
    api.on_start = completes(work)
    train(work)
    (job,) = api.jobs
    api.jobs[job]["metadata"]["labels"]["pipeline/runid"] = change.get("owner", "r1")
    if change.get("refused"):
        api.refuse["DELETE", "/trainjobs/"] = change["refused"]
    end(run)
    leave(work, signalled=1.0, facts=Facts(trainjob=job), state=state)
    lines = settle_run(str(work), "r1")
    assert lines == ([f"{job} {said.format(job=job)}"] if said else [])
    assert (job not in api.jobs) is (not change) and len(api.deleted) == (not change)
    if state == "running":
        shown = page(work, lines)
        assert shown.startswith("# Run stopped from outside, during train") and lines[0] in shown
        assert not change or settle_run(str(work), "r1") == lines


@pytest.mark.parametrize(
    "message, headline, why",
    [
        ("main: Error (exit code 1)", "an error", "its pod ended by itself (main: Error (exit code 1))"),
        ("The node was low on resource: memory.", "its pod is gone", "The node was low on resource: memory."),
    ],
)  # fmt: skip
def test_a_stage_without_a_last_note_is_told_in_the_clusters_words(work, run, message, headline, why):
    end(run, message)
    leave(work)
    assert settle_run(str(work), "r1") == []
    shown = page(work)
    assert shown.startswith(f"# Run failed: train: {headline}") and f"**Why**: {why}" in shown
    (note,) = read_notes(str(work), "r1")
    assert (note.state == "failed") is ("exit code 1" in message) and note.lines[0] == "step 3"


def test_a_part_is_told_in_the_clusters_words_about_its_own_pod(work, run):
    """Argo names a loop's steps by (index:item); a note counts from 1."""
    around = "must-x(0).root(0).exit-handler-1(0)"
    nodes = [
        (f"{around}.for-loop-2(0).iteration-iterations(0).iteration-item(1:1).label(0).executor(0)", "OOMKilled"),
        (f"{around}.for-loop-2(0).iteration-iterations(0).iteration-item(0:0).label(0).executor(0)", "Evicted"),
        (f"{around}.for-loop-3(0).iteration-iterations(0).iteration-item(2:2).shard-part(0).executor(0)", "lost"),
        (f"{around}.condition-2(0).train-on-nodes(0).executor(0)", "no node"),
    ]
    pods = {
        n: {"type": "Pod", "name": name, "phase": "Failed", "message": text} for n, (name, text) in enumerate(nodes)
    }
    run["status"] = {"nodes": pods}
    for stage in ("label-2-of-3", "label-3-of-3", "shard-3-of-3", "train"):
        write_note(str(work), "r1", Note(stage))
    settle_run(str(work), "r1")
    said = {note.stage: note.facts.pod for note in read_notes(str(work), "r1")}
    assert said == {"label-2-of-3": "OOMKilled", "label-3-of-3": "", "shard-3-of-3": "lost", "train": "no node"}
    write_note(str(work), "r1", Note("train", facts=Facts(pod="no node")))
    assert "**Why**: no node\n" in page(work), "and no cause unknown beside it"


@pytest.mark.parametrize("trouble", ["no workflow", "no answer", "no pod"])
def test_a_cluster_that_says_nothing_stops_no_page(api, work, run, monkeypatch, tmp_path, trouble):
    end(run)
    leave(work)
    if trouble == "no answer":
        monkeypatch.setattr(KubernetesApi, "of_this_pod", lambda: KubernetesApi("http://127.0.0.1:9", tmp_path))
    api.workflows.clear()
    if trouble == "no pod":
        monkeypatch.delenv("KFP_POD_NAME")
    assert settle_run(str(work), "r1") == []
    assert "its pod is gone" in page(work)
