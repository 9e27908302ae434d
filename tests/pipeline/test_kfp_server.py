"""The server that other tests ask, against what Kubeflow Pipelines 2.17 answered to the same requests."""

import json
import re
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from must_pipeline.files import COMPILED
from tests.deploy.serve.server import ask as ask_server
from tests.pipeline.kfp_server import KfpServer

CALLS = json.loads((Path(__file__).parent / "recorded" / "api.json").read_text())
PIPELINE, VERSION = "e62280b8-1cdd-4a06-afda-f891eb54ba36", "044f5172-e618-44bc-8efd-dc7539617c41"
LEFT_OUT = {"description", "recurring_run_id"}  # only where somebody gave one; only of runs that a schedule made
MINE = "Bearer scheduler"


@pytest.fixture(scope="module")
def servers():
    """A single-user and a multi-user one, in the state in which the recorded one was."""
    single, multi = KfpServer(), KfpServer(users={MINE: {"vision"}})
    multi.stored["experiments"].clear()
    multi.add("experiments", {"display_name": "must", "namespace": "vision"})
    single.add("pipelines", {"pipeline_id": PIPELINE, "display_name": "must"})
    for name in "abcd":
        single.add("pipelines", {"display_name": name})
    status, version = single.upload({"pipelineid": PIPELINE, "name": "0.1.0-b47492ccfec3"}, COMPILED.read_bytes())
    assert status == 200
    del single.stored["versions"][version["pipeline_version_id"]]
    single.stored["versions"][VERSION] = version | {"pipeline_version_id": VERSION, "pipeline_spec": {
        "root": {"inputDefinitions": {"parameters": {
            "epochs": {"parameterType": "NUMBER_INTEGER", "isOptional": True},
            "source": {"parameterType": "STRING"}, "classes": {"parameterType": "STRING"},
        }}}
    }}  # fmt: skip
    single.add("experiments", {"display_name": "must"})
    values = {"source": "s", "classes": "c"}
    reference = {"pipeline_id": PIPELINE, "pipeline_version_id": VERSION}
    body = {"display_name": "r", "pipeline_version_reference": reference, "runtime_config": {"parameters": values}}
    for _ in range(3):
        single.create("runs", body | {"service_account": "must"}, None)
    schedule = {"display_name": "must-minutely", "max_concurrency": "1", "mode": "DISABLE", "no_catchup": True}
    schedule |= {"trigger": {"cron_schedule": {"cron": "0 * * * * *"}}, "service_account": "must"}
    single.create("recurringruns", {**body, **schedule, "pipeline_version_reference": {"pipeline_id": PIPELINE}}, None)
    yield single, multi
    single.close()
    multi.close()


def ask(url, method, path, body, who=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": who} if who else {})
    return ask_server(HTTPConnection(urlsplit(url).netloc, timeout=10), method, path, data, **headers)


def shape(value):
    """Names and kinds. Of a list, its first item; moments by how they are written; free text not at all."""
    if isinstance(value, dict):
        found = {key: shape(item) for key, item in value.items() if key not in LEFT_OUT}
        return found | {key: "..." for key in ("pipeline_spec", "run_details", "parameters") if key in found}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    if isinstance(value, str):
        return re.sub(r"\d", "9", value) if re.match(r"\d{4}-\d\d-\d\dT", value) else "text"
    return type(value).__name__


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call["name"])
def test_it_answers_as_kubeflow_pipelines_does(servers, call):
    single, multi = servers
    method, path = call["request"].split(" ", 1)
    several = call["name"].startswith("multi-user")
    prepare(call, single)
    who = MINE if several and "nobody" not in call["name"] else None
    status, answer = ask((multi if several else single).url, method, path, call["body"], who)
    expected = call["answer"]
    assert status == call["status"]
    assert shape(answer) == shape(expected)
    if status >= 400:
        assert answer["code"] == expected["code"] and answer["details"][0]["code"] == expected["details"][0]["code"]
        said = [re.sub(r"parameter \w+|'\S+'", "...", each["details"][0]["message"]) for each in (answer, expected)]
        assert said[0].split()[:4] == said[1].split()[:4]


def prepare(call, single):
    """What an earlier recorded call had made, whichever of the calls this process replays."""
    if call["name"] == "the same again":
        single.add("experiments", {"display_name": call["body"]["display_name"]})
    made = next(c for c in CALLS if c["name"] == "a recurring run made")["answer"]
    name = made["recurring_run_id"]
    if call["name"] == "deleted again":
        single.stored["recurringruns"].pop(name, None)
    elif name in call["request"]:
        single.stored["recurringruns"][name] = dict(made)
