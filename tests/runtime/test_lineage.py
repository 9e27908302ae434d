"""The event of OpenLineage beside a promoted version."""

import hashlib
import json
import uuid
from datetime import datetime

import pytest

from must.deploy.promote.registry import Registry
from must.runtime.lineage import lineage, namespace_of
from must.runtime.stages import promote
from tests.deploy.promote.bundles import make_bundle, make_onnx
from tests.runtime.test_decision import ask, places


@pytest.fixture(scope="module")
def promoted(tmp_path_factory):
    """(folder, version) of a model that the stage promoted."""
    folder = tmp_path_factory.mktemp("run")
    given = places(folder, make_bundle(folder / "model", model_folder="gs://b/models/tiny", model_sha256="5a"))
    make_onnx(folder / "onnx" / "model.onnx")
    ask(folder, given, champion="none", champion_uri="")
    others = {"onnx": str(folder / "onnx"), "output": str(folder / "promoted.json")}
    return folder, promote(str(folder / "work"), register="none", **given, **others, champion="none")["version"]


def test_it_names_what_went_in_and_what_came_out_by_content(promoted):
    folder, version = promoted
    place = folder / "registry" / "digits" / version
    event = json.loads((place / "openlineage.json").read_text())
    versions = {
        f"{one['namespace']} {one['name']}": one["facets"]["version"]["datasetVersion"]
        for one in event["inputs"] + event["outputs"]
    }
    held = {name: hashlib.sha256((place / name).read_bytes()).hexdigest() for name in FILES}
    assert versions == {
        f"file {folder}/work/shards": "sha0", "gs://b models/tiny": "5a", f"file {place}": version,
        **{f"file {place}/{name}": sha256 for name, sha256 in held.items()},
    }  # fmt: skip
    assert len(event["inputs"]) == 2 and event["job"]["name"] == "must.digits"
    assert event["eventType"] == "COMPLETE" and datetime.fromisoformat(event["eventTime"]).tzinfo
    for facet in find_facets(event):  # what the specification asks of every facet
        assert facet["_producer"] and facet["_schemaURL"].startswith("https://openlineage.io/spec/facets/")


FILES = ("bundle/model.safetensors", "onnx/model.onnx")


def find_facets(value):
    if isinstance(value, dict):
        for name, below in value.items():
            yield from below.values() if name == "facets" else find_facets(below)
    elif isinstance(value, list):
        for below in value:
            yield from find_facets(below)


def test_the_runs_id_is_a_uuid_kubeflows_own_where_it_is_one(promoted):
    folder, version = promoted
    registry = Registry(str(folder / "registry"), "digits")
    own = "0b1c3a8e-0000-4000-8000-000000000001"
    ids = [lineage(str(folder), registry, version, run)["run"]["runId"] for run in (own, "53943155", "53943155", "7")]
    assert ids[0] == own and ids[1] == ids[2] != ids[3] and all(map(uuid.UUID, ids))


@pytest.mark.parametrize("uri, name", [("s3://b/work/shards", ("s3://b", "work/shards")), ("gs://b", ("gs://b", "/"))])
def test_names_are_those_of_the_specification(uri, name):
    assert namespace_of(uri) == name
