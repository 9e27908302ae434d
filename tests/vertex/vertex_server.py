"""Vertex AI's REST of pipeline jobs and schedules, as far as our commands use it.

Bodies are read by the API's own messages, and what it answers has their shape: unknown fields and missing required ones
are 400, a name that is there is 409, as Google's APIs answer. It is no record of the service.
"""

import json
import re
import threading
import urllib.parse
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from google.auth import jwt
from google.cloud.aiplatform_v1.types import PipelineJob, Schedule
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

PARENT = "projects/my-project/locations/europe-west4"
ACCOUNT = "must@my-project.iam.gserviceaccount.com"
EMPTY = "type.googleapis.com/google.protobuf.Empty"
JOB_ID = re.compile(r"[a-z][-a-z0-9]{0,127}")


class VertexServer:
    """`states`: what a run goes through, a state a look at it; `tasks`: (name, state) of its tasks; `faults`: statuses
    of the next answers."""

    def __init__(self):
        self.jobs, self.schedules, self.calls, self.faults = {}, {}, [], []
        self.states, self.tasks = ["PENDING", "RUNNING", "SUCCEEDED"], []
        self.clock = datetime(2026, 1, 1, tzinfo=UTC)
        server = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                text = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                code, content = server.respond(self.command, self.path, self.headers, text)
                data = json.dumps(content).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def stop(self):
        self.http.shutdown()
        self.http.server_close()

    def respond(self, method, path, headers, text):
        url = urllib.parse.urlsplit(path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if url.path.startswith(("/storage/", "/download/storage/")):  # a bucket, where no page is
            return refused(404, "no such object")
        if whose(headers.get("Authorization") or "") != ACCOUNT:
            return refused(401, "Request had invalid authentication credentials.")
        if self.faults:
            return refused(self.faults.pop(0), "in trouble")
        body = json.loads(text) if text else None
        self.calls.append((method, url.path, body))
        name = url.path.removeprefix("/v1/")
        if not name.startswith(f"{PARENT}/"):
            return refused(403, f"Permission denied on resource {name}")
        kind, _, rest = name.removeprefix(f"{PARENT}/").partition("/")
        try:
            return getattr(self, f"{method.lower()}_{kind}")(rest, query, body)
        except ParseError as error:
            return refused(400, f"Invalid JSON payload received. {error}")
        except KeyError:
            return refused(404, f"{name} is not found.")

    def now(self):
        self.clock += timedelta(seconds=1)
        return self.clock.isoformat().replace("+00:00", "Z")

    # -- runs
    def post_pipelineJobs(self, rest, query, body):  # noqa: N802
        job_id = query.get("pipelineJobId", "")
        if not JOB_ID.fullmatch(job_id):
            return refused(400, "pipeline_job_id is invalid")
        if job_id in self.jobs:
            return refused(409, f"{job_id} already exists")
        self.jobs[job_id] = read(PipelineJob, body) | {"name": f"{PARENT}/pipelineJobs/{job_id}"}
        if wrong := self.what_is_missing(self.jobs[job_id]):
            return refused(400, wrong)
        self.jobs[job_id] |= {"createTime": self.now(), "state": "PIPELINE_STATE_PENDING"}
        self.jobs[job_id]["labels"]["vertex-ai-pipelines-run-billing-id"] = "1"
        self.jobs[job_id]["pipelineSpec"]["deploymentConfig"] = {}
        return 200, self.jobs[job_id]

    def what_is_missing(self, job):
        if not job.get("runtimeConfig", {}).get("gcsOutputDirectory", "").startswith("gs://"):
            return "gcs_output_directory is required"
        root = job["pipelineSpec"]["root"]["inputDefinitions"]["parameters"]
        given = job["runtimeConfig"].get("parameterValues", {})
        lacking = [name for name, one in root.items() if not one.get("isOptional") and name not in given]
        return f"missing parameters {lacking}" if lacking or given.keys() - root.keys() else ""

    def get_pipelineJobs(self, rest, query, body):  # noqa: N802
        job = self.jobs[rest]
        job["state"] = f"PIPELINE_STATE_{self.states[0]}"
        if len(self.states) > 1:
            self.states.pop(0)
        job["jobDetail"] = {"taskDetails": [{"taskName": name, "state": state} for name, state in self.tasks]}
        return 200, job

    # -- schedules
    def post_schedules(self, rest, query, body):
        name, _, action = rest.partition(":")
        if action:
            schedule = self.schedules[name]
            schedule["state"] = {"pause": "PAUSED", "resume": "ACTIVE"}[action]
            return 200, {}
        schedule = read(Schedule, body)
        if not (schedule.get("cron") and schedule.get("displayName") and schedule.get("maxConcurrentRunCount")):
            return refused(400, "cron, display_name and max_concurrent_run_count are required")
        if schedule["createPipelineJobRequest"].get("parent") != PARENT:
            return refused(400, "create_pipeline_job_request.parent is required")
        if wrong := self.what_is_missing(schedule["createPipelineJobRequest"]["pipelineJob"]):
            return refused(400, wrong)
        number = str(len(self.schedules) + 1)
        made = {"name": f"{PARENT}/schedules/{number}", "createTime": self.now(), "state": "ACTIVE"}
        self.schedules[number] = schedule | made
        return 200, self.schedules[number]

    def get_schedules(self, rest, query, body):
        if rest:
            return 200, self.schedules[rest]
        every, start = list(self.schedules.values()), int(query.get("pageToken") or 0)
        more = {"nextPageToken": str(start + 1)} if start + 1 < len(every) else {}
        return 200, {"schedules": every[start : start + 1], **more}  # pages of one

    def patch_schedules(self, rest, query, body):
        schedule = read(Schedule, body)
        for field in query["updateMask"].split(","):
            name = re.sub(r"_(.)", lambda match: match[1].upper(), field)
            self.schedules[rest][name] = schedule[name]
        return 200, self.schedules[rest]

    def delete_schedules(self, rest, query, body):
        del self.schedules[rest]
        return 200, {"name": f"{PARENT}/operations/1", "done": True, "response": {"@type": EMPTY}}


def read(kind, body):
    """What the API's message has of it. Raises ParseError: a field that it does not have."""
    return MessageToDict(ParseDict(body, kind()._pb))


def whose(authorization):
    """Who signed the token: Google's client needs no other server for a service account."""
    try:
        return jwt.decode(authorization.removeprefix("Bearer "), verify=False)["iss"]
    except (ValueError, KeyError):
        return None


def refused(code, message):
    return code, {"error": {"code": code, "message": message, "status": "X"}}
