"""The Model Registry that other tests ask, against what Kubeflow's own answered to the same calls, in their order."""

import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.model_registry_server import V1ALPHA3, ModelRegistryServer

CALLS = json.loads((Path(__file__).parent / "recorded" / "model-registry.json").read_text())["calls"]
OWN = re.compile(
    r"(?<=_models/)\d+|(?<=_versions/)\d+|(?<=_artifacts/)\d+|(?<=parentResourceId=)\d+|(?<=nextPageToken=)\w+"
)
DIFFERS = {"state", "customProperties"}  # of an artifact: the real one has the first only once it was changed


def ask(server, method, path, body):
    data = body.encode() if isinstance(body, str) else None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} if data else {}
    request = urllib.request.Request(server.uri + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_it_answers_as_kubeflows_registry_does(request):
    """Each call's status, and the fields of what it gives. Numbers and tokens are the server's own."""
    server = ModelRegistryServer(root=V1ALPHA3)
    request.addfinalizer(server.stop)
    own: dict[str, str] = {}
    wrong: list[Any] = []
    for call in CALLS:
        path = OWN.sub(lambda match: own.get(match[0], match[0]), call["path"])
        body, real = call["body"], call["answer"]
        if isinstance(body, dict) and "registeredModelId" in body:
            body = {**body, "registeredModelId": own.get(body["registeredModelId"], body["registeredModelId"])}
        status, answer = ask(server, call["method"], path, body)
        for name in ("id", "nextPageToken"):
            if isinstance(real, dict) and real.get(name) and answer.get(name):
                own.setdefault(real[name], answer[name])
        if status != call["status"]:
            wrong.append((call["method"], call["path"], call["body"], call["status"], status))
        elif status < 400:
            fields = (real.keys() ^ answer.keys()) - (DIFFERS if "artifactType" in real else set())
            wrong += [(call["method"], call["path"], fields)] if fields else []
    assert not wrong
