"""A server that answers kfp.Client as Kubeflow Pipelines 2.17 did: with the recorded answers, and what was asked for
in their place, in pages of two. `refuse` names recorded refusals; `play` is what a run goes through."""

import json
import uuid
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.local_server import Answer, LocalServer

CALLS = {call["name"]: call for call in json.loads((Path(__file__).parent / "recorded" / "api.json").read_text())}
RUNS = json.loads((Path(__file__).parent / "recorded" / "runs.json").read_text())
PAGE = 2
KINDS = {  # path -> (a listing's field, the id's field, the recorded answer)
    "pipelines": ("pipelines", "pipeline_id", CALLS["pipelines, listed"]["answer"]["pipelines"][0]),
    "versions": ("pipeline_versions", "pipeline_version_id", {}),
    "experiments": ("experiments", "experiment_id", CALLS["an experiment made"]["answer"]),
    "recurringruns": ("recurringRuns", "recurring_run_id", CALLS["a recurring run made"]["answer"]),
    "runs": ("runs", "run_id", CALLS["runs, newest first"]["answer"]["runs"][0]),
}


class KfpServer:
    def __init__(self):
        self.stored = {kind: {} for kind in KINDS}
        self.calls, self.uploads, self.refuse, self.faults = [], [], {}, []
        self.token, self.single_user = None, False
        self.play = [("RUNNING", []), ("SUCCEEDED", [])]
        self.server = LocalServer(self.handle)
        self.url, self.close = self.server.url, self.server.close

    def handle(self, request):
        url = urlsplit(request.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.calls.append((request.method, url.path, query))
        if self.faults:
            return self.faults.pop(0)
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return Answer(401, CALLS["multi-user, nobody"]["answer"])
        for (method, end), name in self.refuse.items():
            if method == request.method and url.path.endswith(end):
                return Answer(CALLS[name]["status"], CALLS[name]["answer"])
        kind, *rest = url.path.removeprefix("/apis/v2beta1/").split("/")
        if rest[-1:] == ["upload_version"]:
            return Answer(200, self.upload(query, request))
        if rest[-1:] == ["versions"]:
            return self.listing("versions", query, pipeline_id=rest[0])
        if not rest:
            body = json.loads(request.body or b"{}")
            return Answer(200, self.add(kind, **body)) if body else self.listing(kind, query)
        name, _, action = rest[0].partition(":")
        return Answer(200, self.one(request.method, kind, name, action))

    def add(self, kind, **values):
        _, identity, recorded = KINDS[kind]
        values = {name: value for name, value in values.items() if not (self.single_user and name == "namespace")}
        made = recorded | {identity: str(uuid.uuid4())} | {name: one for name, one in values.items() if one is not None}
        if kind == "recurringruns":
            made["status"] = f"{made['mode']}D"
        self.stored[kind][made[identity]] = made
        return made

    def upload(self, query, request):
        header = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
        message = BytesParser(policy=HTTP).parsebytes(header + request.body)
        self.uploads.append(next(part.get_payload(decode=True) for part in message.iter_parts()))
        return self.add("versions", pipeline_id=query["pipelineid"], name=query["name"], display_name=query["name"])

    def listing(self, kind, query, **fixed):
        wanted = fixed | {name: query[name] for name in ("experiment_id",) if name in query}
        items = [one for one in self.stored[kind].values() if wanted.items() <= one.items()]
        start = int(query.get("page_token") or 0)
        more = {"next_page_token": str(start + PAGE)} if start + PAGE < len(items) else {}
        return Answer(200, {KINDS[kind][0]: items[start : start + PAGE], "total_size": len(items)} | more)

    def one(self, method, kind, name, action):
        item = self.stored[kind][name]
        if method == "DELETE":
            del self.stored[kind][name]
        elif action:
            item.update(mode=action.upper(), status=f"{action.upper()}D")
        elif kind == "runs":
            state, tasks = self.play.pop(0) if len(self.play) > 1 else self.play[0]
            item["state_history"] = [*item["state_history"], {"state": state}]
            details = [{"display_name": task, **({"state": ended} if ended else {})} for task, ended in tasks]
            return item | {"state": state, "run_details": {"task_details": details}}
        return {} if action or method == "DELETE" else item
