"""A server that speaks Kubeflow Pipelines' v2beta1 REST, written after what version 2.17 was recorded to answer.

It keeps time in whole seconds, gives pages of two, and lets a run go through the states it is told.
"""

import itertools
import json
import re
import uuid
from datetime import UTC, datetime, timedelta
from email.parser import BytesParser
from email.policy import HTTP
from urllib.parse import parse_qs, urlsplit

from must_pipeline.files import documents
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


class KfpServer:
    """`single_user`: such an installation drops namespaces without a word. `states`: what a run goes through, a state a
    look at it; `tasks`: the (name, state) of its tasks; `faults`: what happens to the next requests, "lost" or a
    status."""

    def __init__(self):
        self.stored = {name: {} for name in COLLECTIONS}
        self.single_user = False
        self.seconds = itertools.count(1)  # the clock, looked at whenever something is made
        self.calls, self.uploads, self.faults = [], [], []
        self.wanted_header = None
        self.refuse = {}  # (method, end of the path) -> (status, message)
        self.states, self.tasks = ["PENDING", "RUNNING", "SUCCEEDED"], []
        self.html = False
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
            status = "DISABLED" if made.get("mode") == "DISABLE" else "ENABLED"
            made |= {"status": status, "updated_at": now}
        if kind == "runs":
            made |= {"storage_state": "AVAILABLE", "scheduled_at": now, "finished_at": NEVER, "state": "PENDING"}
            made |= {"state_history": [{"update_time": now, "state": "PENDING"}], "run_details": {"task_details": []}}
        self.stored[kind][made[field]] = made
        return made

    # -- what is asked
    def handle(self, request):
        url = urlsplit(request.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.calls.append((request.method, url.path, dict(request.headers)))
        if self.faults:
            fault = self.faults.pop(0)
            return Answer(0) if fault == "lost" else Answer(fault, b"<html>Bad Gateway</html>", HTML)
        if self.html:
            return Answer(200, b"<html>log in here</html>", HTML)
        if self.wanted_header:
            name, value = self.wanted_header
            if request.headers.get(name) != value:
                return Answer(401, {"message": "who are you?"})
        return Answer(*self.answer(request.method, url.path, query, parse(request)))

    def answer(self, method, path, query, body):
        for (refused, end), (status, message) in self.refuse.items():
            if method == refused and path.endswith(end):
                return status, {"error": message, "code": 3, "message": message}
        parts = path.removeprefix("/apis/v2beta1/").split("/")
        if path.endswith("/pipelines/upload_version"):
            return self.upload(query, body)
        if len(parts) == 1 and method == "POST":
            return self.create(parts[0], body)
        if len(parts) == 1 or parts[-1] == "versions":
            return self.listing(parts, query)
        if len(parts) == 4:
            parts = parts[2:]
        kind, (name, _, action) = parts[0], parts[1].partition(":")
        return self.one(method, kind, name, action)

    def upload(self, query, data):
        if any(v["name"] == query["name"] for v in self.stored["versions"].values()):
            return 409, {"error_message": "Failed to create a pipeline version. Already exists", "error_details": ""}
        self.uploads.append(data)
        names = {"pipeline_id": query["pipelineid"], "name": query["name"], "display_name": query["name"]}
        return 200, self.add("versions", {**names, "pipeline_spec": documents(data)[0]})

    def listing(self, parts, query):
        kind, space = parts[-1], query.get("namespace", "")
        items = [item for item in self.stored[kind].values() if kind != "versions" or item["pipeline_id"] == parts[1]]
        if not self.single_user and kind != "versions":
            items = [item for item in items if item.get("namespace", space) == space]
        if query.get("sort_by") == "created_at desc":  # versions of one second tie: the id decides
            items = sorted(items, key=lambda i: (i["created_at"], i[COLLECTIONS[kind][1]]), reverse=True)
        start = int(query.get("page_token", 0))
        size = min(PAGE, int(query.get("page_size", PAGE)))
        more = {"next_page_token": str(start + size)} if start + size < len(items) else {}
        return 200, {COLLECTIONS[kind][0]: items[start : start + size], "total_size": len(items), **more}

    def create(self, kind, body):
        if self.single_user:
            body = {key: value for key, value in body.items() if key != "namespace"}
        return 200, self.add(kind, body)

    def one(self, method, kind, name, action):
        item = self.stored[kind].get(name)
        if item is None:
            return 404, {"code": 5, "message": f"{name} not found"}
        if method == "DELETE":
            del self.stored[kind][name]
            return 200, {}
        if action in ("enable", "disable"):
            item.update(mode=action.upper(), status=f"{action.upper()}D")
            return 200, {}
        if kind == "runs" and method == "GET":
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
