"""A server that speaks Kubeflow Pipelines' v2beta1 REST for the calls that submit.py and schedule.py use.

It stores what it gets, gives it back in pages of two, and asks for a login where it is told to.
"""

import itertools
import json
import re
import threading
from datetime import UTC, datetime, timedelta
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PAGE = 2
COLLECTIONS = {  # path -> (field of a listing, the id's field)
    "pipelines": ("pipelines", "pipeline_id"),
    "versions": ("pipeline_versions", "pipeline_version_id"),
    "experiments": ("experiments", "experiment_id"),
    "recurringruns": ("recurringRuns", "recurring_run_id"),
    "runs": ("runs", "run_id"),
}


class KfpServer:
    """`wanted_header`: (name, value) without which calls are refused; `states`: what a run will go through."""

    def __init__(self):
        self.stored = {name: {} for name in COLLECTIONS}
        self.numbers = itertools.count(1)
        self.calls, self.uploads = [], []
        self.wanted_header = None
        self.refuse = {}  # (method, end of the path) -> (status, message)
        self.states = ["PENDING", "RUNNING", "SUCCEEDED"]
        self.html = False
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def add(self, kind, item):
        number = next(self.numbers)
        made = {
            **item,
            COLLECTIONS[kind][1]: f"{kind}-{number}",
            "created_at": (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)).isoformat(),
        }
        if kind == "recurringruns":
            made["status"] = "DISABLED" if made.get("mode") == "DISABLE" else "ENABLED"
        self.stored[kind][made[COLLECTIONS[kind][1]]] = made
        return made

    def answer(self, method, path, query, body):
        for (refused, end), (status, message) in self.refuse.items():
            if method == refused and path.endswith(end):
                return status, {"error": message, "code": 3, "message": message}
        parts = path.removeprefix("/apis/v2beta1/").split("/")
        if path.endswith("/pipelines/upload_version"):
            space = {"pipeline_id": query["pipelineid"], "name": query["name"], "display_name": query["name"]}
            self.uploads.append(body)
            return 200, self.add("versions", space)
        if len(parts) == 1 and method == "POST":
            return 200, self.add(parts[0], body)
        if method == "GET" and (len(parts) == 1 or parts[-1] == "versions"):
            items = list(self.stored[parts[-1]].values())
            if parts[-1] == "versions":
                items = [item for item in items if item["pipeline_id"] == parts[1]]
            space = query.get("namespace")
            items = [item for item in items if not space or item.get("namespace", space) == space]
            start = int(query.get("page_token", 0))
            more = {"next_page_token": str(start + PAGE)} if start + PAGE < len(items) else {}
            return 200, {COLLECTIONS[parts[-1]][0]: items[start : start + PAGE], **more}
        kind, (name, _, action) = parts[0], parts[1].partition(":")
        if name not in self.stored[kind]:
            return 404, {"message": f"{kind} {name} not found", "code": 5}
        item = self.stored[kind][name]
        if method == "DELETE":
            del self.stored[kind][name]
            return 200, {}
        if action in ("enable", "disable"):
            item.update(mode=action.upper(), status=f"{action.upper()}D")
            return 200, {}
        if kind == "runs" and len(self.states) > 1:
            item["state"] = self.states.pop(0)
        elif kind == "runs":
            item["state"] = self.states[0]
        return 200, item


def handler(server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement

        def handle_any(self):
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            server.calls.append((self.command, url.path, dict(self.headers)))
            if server.html:
                return self.send(200, b"<html>log in here</html>", "text/html")
            if server.wanted_header:
                name, value = server.wanted_header
                if self.headers.get(name) != value:
                    return self.send(401, b'{"message": "who are you?"}')
            status, answer = server.answer(self.command, url.path, query, self.parse(data))
            return self.send(status, json.dumps(answer).encode())

        def parse(self, data):
            kind = self.headers.get("Content-Type", "")
            if kind.startswith("multipart/form-data"):
                message = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + data)
                return next(part.get_payload(decode=True) for part in message.iter_parts())
            return json.loads(data) if data and re.search("json", kind) else {}

        def send(self, status, data, kind="application/json"):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

        do_GET = do_POST = do_DELETE = handle_any  # noqa: N815

    return Handler
