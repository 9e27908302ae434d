"""A launcher that finds a job of its name: whose it is, whether it failed, whether the failure is its own."""

import shutil

import pytest

from must_components.train_job import launch
from tests.components.launching import SUMMARY, completes, exit_code, fails, nodes, train


def test_a_retry_replaces_a_failed_job_and_keeps_its_name(api, work, failed_job, capfd):
    api.on_create = completes(work, "going on after step 5")
    train(work)
    assert len(api.created) == 2 and api.created[0]["metadata"]["name"] == api.created[1]["metadata"]["name"]
    assert "failed before; starting it again from its checkpoints" in capfd.readouterr().out


def test_the_new_job_is_made_when_all_of_the_old_one_is_gone(api, work, failed_job):
    """Beside an old JobSet Trainer builds none, and old pods would still write checkpoints."""
    api.lag = 4
    there = []

    def on_create(api, name):
        there.append([pod.job_set is api.sets[name] for pod in api.pods[name]])
        completes(work)(api, name)

    api.on_create = on_create
    assert train(work).summary == SUMMARY
    assert there == [[True, True]]


def test_the_failure_of_an_earlier_job_of_the_name_is_not_this_ones(api, work, failed_job):
    """Somebody deleted the failed job with kubectl: in the background, so that its JobSet is still there."""
    (old,) = api.sets.values()
    api.lag = 8
    api.answer("DELETE", f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/vision/trainjobs/{failed_job}", {}, None)
    seen = []
    api.on_create = lambda api, name: seen.append(api.sets[name] is old and failed(api.jobs[name]))
    api.on_start = completes(work)
    assert train(work).summary == SUMMARY and seen == [True]


def failed(job):
    return [condition["type"] for condition in job["status"]["conditions"]] == ["Failed"]


def test_a_retried_launcher_attaches_to_the_job_that_runs(api, work, capfd, monkeypatch):
    def killed(self):
        raise SystemExit(137)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(launch.Launch, "wait", killed)
        train(work)
    (name,) = api.jobs
    completes(work)(api, name)
    assert train(work).summary == SUMMARY
    assert len(api.created) == 1 and f"attached to the TrainJob {name}" in capfd.readouterr().out


def test_other_data_classes_or_settings_are_another_job(api, work):
    names = set()
    for change in ({}, {"settings": {"lr": 2e-3}}, {"epochs": 3}, {"preset": "imagenet"}):
        api.on_create = fails("no")
        assert exit_code(work, **change) == 1
        names.add(api.created[-1]["metadata"]["name"])
    assert len(names) == 4 and all(len(f"{name}-node-0-0") <= 63 for name in names)


def test_two_runs_at_two_places_have_two_jobs(api, work, tmp_path):
    """With the same data and settings, that is, with the same key."""
    other = tmp_path / "other"
    for place in (work, other):
        api.on_create = completes(place)
        train(place)
    first, second = (job["metadata"] for job in api.created)
    assert first["name"] != second["name"] and first["name"][-16:] == second["name"][-16:]
    for job, place in ((first, work), (second, other)):
        assert job["annotations"]["must/job"] == str(next((place / "jobs").iterdir()))


@pytest.mark.parametrize("annotations", [None, {"must/job": "gs://other/jobs/key"}])
def test_a_job_of_another_place_is_neither_followed_nor_deleted(api, work, failed_job, capfd, annotations):
    api.jobs[failed_job]["metadata"]["annotations"] = annotations
    capfd.readouterr()
    assert exit_code(work) == 2 and failed_job in api.jobs and not api.deleted
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "must train:" in line]
    assert f"there is a TrainJob {failed_job} for another place" in line and "it was not changed" in line


def test_a_launcher_that_loses_the_race_for_the_name_attaches(api, work, capfd, monkeypatch):
    """Nothing there when it looks, 409 when it creates."""
    api.on_create = completes(work)
    train(work)
    seen, real = [], launch.Launch.current_job

    def look(self):
        seen.append(1)
        return None if len(seen) == 1 else real(self)

    monkeypatch.setattr(launch.Launch, "current_job", look)
    train(work)
    assert len(api.created) == 1 and "another launcher has just submitted" in capfd.readouterr().out


def test_a_complete_job_whose_model_is_gone_is_run_again(api, work, capfd):
    api.on_create = completes(work)
    train(work)
    shutil.rmtree(next((work / "jobs").glob("*/bundle")))
    train(work)
    assert len(api.created) == 2 and "its model is gone" in capfd.readouterr().out


def test_a_trainer_that_drops_our_patches_is_too_old(api, work, capfd):
    """It would train without service account, pool, tolerations, volumes and deadline."""
    api.version = "2.1"
    assert exit_code(work, nodes=nodes() | {"timeout": 60}) == 2 and len(api.deleted) == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "must train:" in line]
    assert "Kubeflow Trainer 2.2 or newer is needed" in line
