"""A server that speaks Kubeflow Pipelines' v2beta1 REST as version 2.17 answers it: test_kfp_server.py compares them.
It refuses what the real one refuses (status, code and the first words of the reason), fails where no test has met the
refusal yet, keeps time in whole seconds, gives pages of two, and lets a run go through the states it is told."""

import itertools
import json
import re
import uuid
from datetime import UTC, datetime, timedelta
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any
from urllib.parse import parse_qs, urlsplit

from must_pipeline.files import load_documents
from tests.local_server import Answer, LocalServer

PAGE = 2
HTML = {"Content-Type": "text/html"}
NEVER = "1970-01-01T00:00:00Z"
OVER = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
COLLECTIONS = {  # path -> (field of a listing, the id's field)
    "pipelines": ("pipelines", "pipeline_id"),
    "versions": ("pipeline_versions", "pipeline_version_id"),
    "experiments": ("experiments", "experiment_id"),
    "recurringruns": ("recurringRuns", "recurring_run_id"),
    "runs": ("runs", "run_id"),
}
HEALTHZ: dict[str, Any] = {"a list": []} | {  # by version, as the sources of its API server and of its page write it
    version: {"commit_sha": "unknown", "tag_name": version, "multi_user": True, "pipeline_store": "database"}
    for version in ("2.16.1", "2.17.0", "unknown")
} | {
    f"{version} behind the page": {
        "buildDate": "", "frontendCommitHash": "", "frontendTagName": version, "apiServerReady": True,
        "multi_user": True, "apiServerCommitHash": "unknown", "apiServerTagName": version, "apiServerMultiUser": True,
        "pipelineStore": "database",
    }
    for version in ("2.16.1", "2.17.0")
}  # fmt: skip
STATUS = {3: 400, 5: 404, 6: 409, 7: 403, 13: 500, 16: 401}  # by gRPC code
KINDS = {  # of parameters: the server's word, and the types of Python
    "STRING": ("string", str), "BOOLEAN": ("bool", bool), "LIST": ("list", list), "STRUCT": ("struct", dict),
    "NUMBER_INTEGER": ("double or integer", (int, float)), "NUMBER_DOUBLE": ("double or integer", (int, float)),
}  # fmt: skip


class KfpServer:
    """`users`: {Authorization header: namespaces}; None for an installation for a single user. `states`: what a run
    goes through, a state a look at it; `tasks`: the (name, state) of its tasks; `faults`: what happens to the next
    requests, "lost" or a status; `refuse`: (method, end of the path) -> (status, message)."""

    def __init__(self, users=None):
        self.stored = {name: {} for name in COLLECTIONS}
        self.users = users
        self.seconds = itertools.count(1)  # the clock, looked at whenever something is made
        self.calls, self.uploads, self.faults = [], [], []
        self.wanted_header, self.refuse = None, {}
        self.states, self.tasks = ["PENDING", "RUNNING", "SUCCEEDED"], []
        self.healthz = HEALTHZ["2.17.0"]
        self.meanwhile = lambda run: None  # at each look at a run: what its stages do
        self.add("experiments", {"display_name": "Default", "description": "All runs without an experiment."})
        self.server = LocalServer(self.handle)
        self.url, self.close = self.server.url, self.server.close

    def now(self):
        moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=next(self.seconds))
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ")

    def add(self, kind, item):
        """Stores it as the server shows it."""
        field, now = COLLECTIONS[kind][1], self.now()
        made = {field: str(uuid.uuid4()), "created_at": now, **item}
        if kind in ("pipelines", "versions"):
            made.setdefault("name", made.get("display_name"))
        if kind == "experiments":
            made |= {"storage_state": "AVAILABLE", "last_run_created_at": NEVER}
        if kind == "recurringruns":
            made |= {"status": f"{made.get('mode', 'ENABLE')}D", "updated_at": now}
        if kind == "runs":
            made |= {"storage_state": "AVAILABLE", "scheduled_at": now, "finished_at": NEVER, "state": "PENDING"}
            made |= {"state_history": [{"update_time": now, "state": "PENDING"}], "run_details": {"task_details": []}}
        self.stored[kind][made[field]] = made
        return made

    def handle(self, request):
        url = urlsplit(request.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.calls.append((request.method, url.path, dict(request.headers)))
        if self.faults:
            fault = self.faults.pop(0)
            return Answer(0) if fault == "lost" else Answer(fault, b"<html>Bad Gateway</html>", HTML)
        if self.wanted_header and request.headers.get(self.wanted_header[0]) != self.wanted_header[1]:
            return Answer(401, {"message": "who are you?"})
        try:
            who = request.headers.get("Authorization")
            return Answer(*self.answer(request.method, url.path, query, parse(request), who))
        except RefusedError as error:
            code, why = error.args
            detail = {"@type": "type.googleapis.com/google.rpc.Status", "code": code, "message": why}
            return Answer(STATUS[code], {"code": code, "message": why, "details": [detail]})

    def answer(self, method, path, query, body, who):
        for (refused, end), (status, message) in self.refuse.items():
            if method == refused and path.endswith(end):
                return status, {"error": message, "code": 3, "message": message}
        parts = path.removeprefix("/apis/v2beta1/").split("/")
        if parts == ["healthz"]:
            return 200, self.healthz
        if path.endswith("/pipelines/upload_version"):
            return self.upload(query, body)
        if len(parts) == 1:
            return self.create(parts[0], body, who) if method == "POST" else self.listing(parts, query, who)
        if parts[-1] == "versions":
            return self.listing(parts, query, who)
        kind, last = parts
        name, _, action = last.partition(":")
        if name not in self.stored[kind]:
            raise RefusedError(5, f"{'Job' if kind == 'recurringruns' else kind[:-1].capitalize()} {name} not found")
        return self.one(method, kind, name, action)

    def upload(self, query, data):
        assert query["pipelineid"] in self.stored["pipelines"], "the server answers 400"
        assert query["name"] not in [v["name"] for v in self.stored["versions"].values()], "the server answers 409"
        self.uploads.append(data)
        names = {"pipeline_id": query["pipelineid"], "name": query["name"], "display_name": query["name"]}
        return 200, self.add("versions", {**names, "pipeline_spec": load_documents(data)[0]})

    def listing(self, parts, query, who):
        kind, space = parts[-1], query.get("namespace", "")
        if kind != "versions":
            self.check_access(kind, space, who)
        items = [item for item in self.stored[kind].values() if kind != "versions" or item["pipeline_id"] == parts[1]]
        if self.users is not None and kind != "versions":
            items = [item for item in items if item.get("namespace", space) == space]
        if query.get("sort_by") == "created_at desc":  # versions of one second tie: the id decides
            items = sorted(items, key=lambda i: (i["created_at"], i[COLLECTIONS[kind][1]]), reverse=True)
        start = int(query.get("page_token", 0))
        size = min(PAGE, int(query.get("page_size", PAGE)))
        more = {"next_page_token": str(start + size)} if start + size < len(items) else {}
        return 200, {COLLECTIONS[kind][0]: items[start : start + size], "total_size": len(items), **more}

    def create(self, kind, body, who):
        if kind in ("experiments", "pipelines"):
            self.check_access(kind, body.get("namespace", ""), who)
            name = body.get("display_name") or body["name"]
            assert len(name) <= 128, "the server answers 400"
            if any(item["display_name"] == name for item in self.stored[kind].values()):
                raise RefusedError(6, f"Failed to create a new {kind[:-1]}. The name {name} already exists")
            if self.users is None:  # dropped without a word
                body = {key: value for key, value in body.items() if key != "namespace"}
            return 200, self.add(kind, body)
        body = self.with_experiment(kind, body, who)
        if kind == "recurringruns":
            check_schedule(body)
        else:
            check_parameters(self.spec(body), body.get("runtime_config", {}).get("parameters", {}))
        return 200, self.add(kind, body)

    def with_experiment(self, kind, body, who):
        """A run belongs to its experiment's namespace, and to the default experiment without one."""
        given, space = body.get("experiment_id"), body.get("namespace", "")
        assert self.users is None or given, "the server answers 400"
        experiment = self.stored["experiments"][given or next(iter(self.stored["experiments"]))]
        owner = experiment.get("namespace", "")
        assert not (given and space) or space == owner, "the server answers 400"
        self.check_access(kind, owner, who)
        made = {**body, "experiment_id": experiment["experiment_id"]}
        if kind == "recurringruns":
            made["namespace"] = owner or space or "kubeflow"
        return made

    def check_access(self, kind, namespace, who):
        """Of a call that lists or makes something in `namespace`."""
        if self.users is None:
            return
        if not namespace:
            why = f"A {kind[:-1]} cannot have an empty namespace in multi-user mode"
            raise RefusedError(7 if kind == "pipelines" else 3, why)
        if who not in self.users:
            raise RefusedError(16, "Failed to check authorization. User identity is empty in the request header")
        if namespace not in self.users[who]:
            raise RefusedError(7, "User 'somebody' is not authorized with reason:  (request: namespace)")

    def spec(self, body):
        version = body["pipeline_version_reference"]["pipeline_version_id"]
        if version not in self.stored["versions"]:
            raise RefusedError(13, "Internal Server Error")
        return self.stored["versions"][version]["pipeline_spec"]

    def one(self, method, kind, name, action):
        item = self.stored[kind][name]
        if method == "DELETE":
            del self.stored[kind][name]
            return 200, {}
        if action in ("enable", "disable"):
            item.update(mode=action.upper(), status=f"{action.upper()}D")
            return 200, {}
        assert not action, action
        if kind == "runs" and method == "GET":
            self.meanwhile(item)
            self.move(item, self.states.pop(0) if len(self.states) > 1 else self.states[0])
        return 200, item

    def move(self, run, state):
        if state != run["state"]:
            run["state_history"] = [*run["state_history"], {"update_time": self.now(), "state": state}]
        run["state"] = state
        run["finished_at"] = run["state_history"][-1]["update_time"] if state in OVER else NEVER
        tasks = [{"display_name": n, **({"state": s} if s else {}), "error": None} for n, s in self.tasks]
        run["run_details"] = {"task_details": tasks}


def parse(request):
    kind = request.headers.get("Content-Type", "")
    if kind.startswith("multipart/form-data"):
        message = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + request.body)
        return next(part.get_payload(decode=True) for part in message.iter_parts())
    return json.loads(request.body) if request.body and re.search("json", kind) else {}


class RefusedError(Exception):
    """With gRPC's code, and what the code at fault says."""


def check_parameters(spec, values):
    """In the order of the server's: each parameter of the pipeline, and then what it does not have."""
    known = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    for name, one in known.items():
        word, kinds = KINDS[one["parameterType"]]
        value = values.get(name)
        if name not in values:
            if not one.get("isOptional") and "defaultValue" not in one:
                raise RefusedError(3, f"parameter {name} is not optional, yet has neither default value nor user's")
        elif not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise RefusedError(3, f"input parameter {name} requires type {word}")
    assert values.keys() <= known.keys(), "the server answers 400"


def check_schedule(body):
    cron = body.get("trigger", {}).get("cron_schedule", {}).get("cron", "")
    if not cron.startswith("@") and len(cron.split()) not in (5, 6):
        raise RefusedError(3, f"Schedule cron is not a supported format. Expected 5 to 6 fields: {cron}")
    if not 1 <= int(body.get("max_concurrency", 0)) <= 10:
        raise RefusedError(3, "Max concurrency of a recurring run must be at least 1 and at most 10")
