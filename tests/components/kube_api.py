"""A Kubernetes API server for TrainJobs, as far as the kubeflow SDK talks to one: over real HTTP, with pods that run.

A TrainJob that is created gets a pod a node. What the pods do is the test's business: `Pod.say`, `Api.finish`.
"""

import json
import re
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from kubeflow_trainer_api import models

GROUP = "/apis/trainer.kubeflow.org/v1alpha1"
RUNTIME = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "ClusterTrainingRuntime",
    "metadata": {"name": "torch-distributed", "labels": {"trainer.kubeflow.org/framework": "torch"}},
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {}},
        "template": {
            "spec": {
                "replicatedJobs": [
                    {
                        "name": "node",
                        "template": {
                            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
                            "spec": {
                                "template": {"spec": {"containers": [{"name": "node", "image": "pytorch/pytorch"}]}}
                            },
                        },
                    }
                ]
            }
        },
    },
}


def now():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Pod:
    def __init__(self, job, node, attempt=0):
        self.job, self.node = job, node
        self.name = f"{job}-node-0-{node}-{attempt}"
        self.phase, self.lines, self.created = "Running", [], now()

    def say(self, *lines):
        self.lines.extend(lines)

    def to_dict(self):
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.name,
                "namespace": "vision",
                "creationTimestamp": self.created,
                "labels": {
                    "jobset.sigs.k8s.io/jobset-name": self.job,
                    "jobset.sigs.k8s.io/replicatedjob-name": "node",
                    "batch.kubernetes.io/job-completion-index": str(self.node),
                },
            },
            "spec": {"containers": [{"name": "node", "image": "x"}]},
            "status": {"phase": self.phase},
        }


class Api:
    """`drop_log_after`: lines after which a followed log is cut off, once. `outage`: calls answered with 503."""

    def __init__(self):
        self.jobs, self.pods, self.events, self.created = {}, {}, [], []
        self.calls, self.outage, self.drop_log_after, self.refuse_create = [], 0, 0, None
        self.on_create = lambda api, job: None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    # --- what a test does -----------------------------------------------------------------------------------------

    def start(self, name, job=None):
        """As the controller does: a pod a node."""
        self.jobs[name] = job or {
            "apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "metadata": {"name": name},
            "spec": {"runtimeRef": {"name": "torch-distributed"}, "trainer": {"numNodes": 2}},
        }  # fmt: skip
        self.jobs[name]["metadata"] |= {"namespace": "vision", "creationTimestamp": now(), "uid": name}
        self.pods[name] = [Pod(name, node) for node in range(self.jobs[name]["spec"]["trainer"].get("numNodes", 1))]

    def finish(self, name, kind="Complete", message=""):
        for pod in self.pods[name]:
            pod.phase = "Succeeded" if kind == "Complete" else "Failed"
        condition = {"type": kind, "status": "True", "reason": kind, "message": message, "lastTransitionTime": now()}
        self.jobs[name]["status"] = {"conditions": [condition]}

    def note(self, kind, name, reason, message):
        self.events.append(
            {
                "metadata": {"name": f"event-{len(self.events)}", "namespace": "vision"},
                "involvedObject": {"kind": kind, "name": name}, "reason": reason, "message": message,
                "firstTimestamp": now(),
            }
        )  # fmt: skip

    def kubeconfig(self, path):
        user = {"name": "me", "user": {"token": "t"}}
        cluster = {"name": "here", "cluster": {"server": self.url}}
        context = {"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "vision"}}
        content = {"current-context": "here", "users": [user], "clusters": [cluster], "contexts": [context]}
        path.write_text(json.dumps(content))
        return path

    # --- what the API does ----------------------------------------------------------------------------------------

    def answer(self, method, path, query, body):
        if path.endswith("/clustertrainingruntimes/torch-distributed"):
            return 200, RUNTIME
        if path == f"{GROUP}/namespaces/vision/trainjobs" and method == "POST":
            return self.create(body)
        if match := re.fullmatch(rf"{GROUP}/namespaces/vision/trainjobs/([\w-]+)", path):
            return self.one(method, match[1])
        if path == "/api/v1/namespaces/vision/pods":
            job = re.search(r"jobset-name=([\w-]+)", query.get("labelSelector", ""))[1]
            items = [pod.to_dict() for pod in self.pods.get(job, [])]
            return 200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}
        if path == "/api/v1/namespaces/vision/events":
            return 200, {"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": self.events}
        return 404, status(404, "NotFound", f"{path} not found")

    def create(self, body):
        if self.refuse_create:
            return self.refuse_create, status(self.refuse_create, "Forbidden", "trainjobs is forbidden")
        name = body["metadata"]["name"]
        if name in self.jobs:
            return 409, status(409, "AlreadyExists", f'trainjobs "{name}" already exists')
        models.TrainerV1alpha1TrainJob.from_dict(body)
        self.created.append(body)
        self.start(name, body)
        self.on_create(self, name)
        return 201, body

    def one(self, method, name):
        if name not in self.jobs:
            return 404, status(404, "NotFound", f'trainjobs "{name}" not found')
        if method == "DELETE":
            self.pods.pop(name)
            return 200, self.jobs.pop(name)
        return 200, self.jobs[name]

    def pod(self, name):
        return next((pod for pods in self.pods.values() for pod in pods if pod.name == name), None)


def status(code, reason, message):
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": reason,
        "message": message,
        "code": code,
    }


def handler(api):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement

        def handle_any(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            api.calls.append((self.command, url.path))
            if api.outage > 0 and "trainjobs" in url.path:
                api.outage -= 1
                return self.send(503, status(503, "ServiceUnavailable", "the server is restarting"))
            if url.path.endswith("/log"):
                return self.log(api.pod(url.path.split("/")[-2]), query.get("follow") == "True")
            content = json.loads(body) if body else None
            return self.send(*api.answer(self.command, url.path, query, content))

        def send(self, code, content):
            data = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log(self, pod, follow):
            """Chunked, until the pod has ended."""
            if pod is None:
                return self.send(404, status(404, "NotFound", "pod not found"))
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            sent = 0
            while True:
                ended = pod.phase in ("Succeeded", "Failed") or not follow or api.pod(pod.name) is None
                for line in pod.lines[sent:]:
                    data = f"{line}\n".encode()
                    self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                    self.wfile.flush()
                    sent += 1
                    if follow and api.drop_log_after and sent >= api.drop_log_after:
                        api.drop_log_after = 0
                        self.close_connection = True
                        self.connection.close()
                        return None
                if ended:
                    self.wfile.write(b"0\r\n\r\n")
                    return None
                time.sleep(0.02)

        def log_message(self, *args):
            pass

        def handle(self):
            with suppress(OSError, ValueError):  # a client that went away, or a connection that was cut on purpose
                super().handle()

        do_GET = do_POST = do_DELETE = handle_any  # noqa: N815

    return Handler
