"""The layout of work_uri: another version's runs go on from what lies there, so it does not change by accident."""

import pytest

from must.runtime.places import WorkUri


@pytest.mark.parametrize("root", ["/work", "gs://bucket/prefix"])
def test_a_runs_things_lie_where_earlier_versions_left_them(root):
    work, job = WorkUri(root), WorkUri(root).job("k")
    assert [work.shards, work.checkpoints("k"), work.classifier("k"), work.registry()] == [
        f"{root}/{name}" for name in ("shards", "checkpoints/k", "classifiers/k", "registry")
    ]
    assert work.models == f"{root}/models"
    assert (work.notes("7"), work.notes("")) == (f"{root}/notes/7", f"{root}/notes/run")
    assert work.registry("gs://models/registry") == "gs://models/registry"
    assert [job.uri, job.description, job.classifier, job.bundle] == [
        f"{root}/jobs/k{name}" for name in ("", "/job.yaml", "/classifier.safetensors", "/bundle")
    ]
