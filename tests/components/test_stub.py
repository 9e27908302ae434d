"""The stand-in for Kubeflow Trainer gives the objects that a real one was recorded to give."""

import json
from pathlib import Path

RECORDED = Path(__file__).with_name("recorded")
NEW = {"uid", "creationTimestamp", "resourceVersion", "time", "namespace", "generateName", "managedFields"}


def recorded(name):
    return json.loads((RECORDED / f"{name}.json").read_text())


def shape(value):
    """Without what differs from one object to the next."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items() if name not in NEW}
    return [shape(item) for item in value] if isinstance(value, list) else value


def sent():
    """The recorded request, before admission."""
    job = recorded("trainjob")
    spec = {name: job["spec"][name] for name in ("activeDeadlineSeconds", "runtimePatches", "trainer")}
    for patch in spec["runtimePatches"]:
        del patch["time"]
    spec["runtimeRef"] = {"name": "torch-distributed"}
    metadata = {"name": job["metadata"]["name"], "labels": job["metadata"]["labels"]}
    return {"apiVersion": job["apiVersion"], "kind": "TrainJob", "metadata": metadata, "spec": spec}


def test_a_trainjob_and_its_jobset_after_admission(api):
    assert api.create(sent())[0] == 201
    assert shape(api.jobs["must-rec"]) == shape(recorded("trainjob"))
    assert [shape(api.parts["must-rec"])] == shape(recorded("jobset"))["spec"]["replicatedJobs"]


def test_a_pod_after_its_container_was_restarted_in_place(api):
    api.create(sent())
    api.exit("must-rec", 0, 1)
    ours, theirs = api.pods["must-rec"][0].to_dict(), recorded("pod")
    assert ours["metadata"]["labels"].items() <= theirs["metadata"]["labels"].items()
    for field in ("serviceAccountName", "nodeSelector", "imagePullSecrets", "restartPolicy", "hostname"):
        assert ours["spec"][field] == theirs["spec"][field], field
    assert ours["spec"]["terminationGracePeriodSeconds"] == theirs["spec"]["terminationGracePeriodSeconds"] == 30
    (mine,), (real,) = ours["status"]["containerStatuses"], theirs["status"]["containerStatuses"]
    assert mine.keys() == real.keys() and mine["restartCount"] == real["restartCount"] == 1
    assert real["state"]["terminated"]["exitCode"] == 1 and theirs["status"]["phase"] == "Running"
