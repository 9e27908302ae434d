"""A Kubernetes API server for TrainJobs, with their controllers, as far as our launcher and the stage summary use them.
A TrainJob that is created gets a pod a node (trainer.py). What the pods do is the test's business: `Pod.say`,
`Api.exit`, `Api.finish`. Objects change when a request or a test changes them, so a test never waits."""

import json
import re
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.common import ROOT
from tests.components.trainer import RUNTIME, Pod, admit, build_job, now
from tests.local_server import Answer, LocalServer

GROUP = "/apis/trainer.kubeflow.org/v1alpha1"
JOBSETS = "/apis/jobset.x-k8s.io/v1alpha2"
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
SPACE = "namespaces/vision"


class Api:
    """`outage`: calls answered with 503. `lag`: looks at a JobSet that is deleted until its pods have ended and it is
    gone. `refuse`: (method, part of a path) -> status. `jobsets`: by name, how often one more look shows it; None where
    it is not being deleted. `allowed`: what a review of a permission says."""

    def __init__(self):
        self.version, self.lag, self.queued, self.outage, self.allowed = "2.3", 2, False, 0, True
        self.jobs, self.jobsets, self.parts, self.pods, self.events, self.created = {}, {}, {}, {}, [], []
        self.workflows, self.launchers, self.deleted, self.calls, self.refuse, self.reviews = {}, {}, [], [], {}, []
        self.runtimes = {"clustertrainingruntimes/torch-distributed": RUNTIME}
        self.on_start = lambda api, name: None  # the job's pods are there
        self.server = LocalServer(lambda request: respond(self, request))
        self.url = self.server.url

    # --- what a test does -----------------------------------------------------------------------------------------

    def apply(self, file):
        """A TrainingRuntime of deploy/ in the namespace."""
        runtime = yaml.safe_load((ROOT / "deploy" / file).read_text())
        self.runtimes[f"{SPACE}/trainingruntimes/{runtime['metadata']['name']}"] = runtime

    def exit(self, name, node, code):
        """The container of a node ends; what Kubernetes, JobSet and Trainer make of it."""
        pod = next(pod for pod in self.pods[name] if pod.node == node)
        pod.code = code
        child = self.parts[name]["template"]["spec"]
        if code == 0:
            if all(other.code == 0 for other in self.pods[name]):
                self.conclude(name, "Complete", "AllJobsCompleted", "jobset completed successfully")
        elif child["template"]["spec"]["restartPolicy"] == "Never":  # with backoffLimit 0, as our runtime has both
            assert child["backoffLimit"] == 0
            self.pods[name] = [other for other in self.pods[name] if other.code is not None]
            self.conclude(name, "Failed", "ReachedMaxRestarts", "jobset failed due to reaching max number of restarts")
        elif pod.restarts < child.get("backoffLimit", 6):
            pod.restart()
        else:
            self.pods[name] = []
            self.conclude(name, "Failed", "FailedJobs", "jobset failed due to one or more job failures")

    def finish(self, name):
        for pod in list(self.pods.get(name, [])):  # deleted in between, there are none
            self.exit(name, pod.node, 0)

    def conclude(self, name, kind, reason, message):
        condition = {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now()}
        self.jobs[name].setdefault("status", {})["conditions"] = [condition]

    # --- what the API does ----------------------------------------------------------------------------------------

    def answer(self, method, path, query, body):
        for (refused, part), code in self.refuse.items():
            if method == refused and part in path:
                return code, {"message": "trainjobs is forbidden"}
        if path == f"{GROUP}/{SPACE}/trainjobs" and method == "POST":
            return self.create(body)
        if match := re.fullmatch(rf"{GROUP}/{SPACE}/trainjobs/([\w-]+)", path):
            return self.one(method, match[1], body or {})
        if match := re.fullmatch(rf"{JOBSETS}/{SPACE}/jobsets/([\w-]+)", path):
            self.reconcile(match[1])
            return found({"metadata": {"name": match[1]}} if match[1] in self.jobsets else None)
        if path == REVIEWS:
            self.reviews.append(body["spec"]["resourceAttributes"])
            return 201, {"status": {"allowed": self.allowed}}
        if path.startswith(GROUP):
            return found(self.runtimes.get(path.removeprefix(f"{GROUP}/")))
        if match := re.fullmatch(rf"/apis/argoproj.io/v1alpha1/{SPACE}/workflows/([\w-]+)", path):
            return found(self.workflows.get(match[1]))
        if match := re.fullmatch(rf"/api/v1/{SPACE}/pods/([\w-]+)", path):
            return found(self.launchers.get(match[1]))
        if match := re.fullmatch(rf"/api/v1/{SPACE}/pods/([\w-]+)/log", path):
            pod = next((pod for pods in self.pods.values() for pod in pods if pod.name == match[1]), None)
            return (200, pod.log(query).encode()) if pod else found(None)
        if path == f"/api/v1/{SPACE}/pods":
            return 200, {"items": self.select(query["labelSelector"])}
        return (200, {"items": self.events}) if path == f"/api/v1/{SPACE}/events" else found(None)

    def create(self, body):
        name = body["metadata"]["name"]
        if name in self.jobs:
            return 409, {"message": f'trainjobs "{name}" already exists'}
        job = admit(body, self.version, self.queued)
        reference = job["spec"]["runtimeRef"]
        place = f"{SPACE}/trainingruntimes" if reference["kind"] == "TrainingRuntime" else "clustertrainingruntimes"
        assert f"{place}/{reference['name']}" in self.runtimes
        self.created.append(body)
        self.jobs[name] = job
        if (
            name in self.jobsets
        ):  # of the job before: Trainer builds none beside it, and takes its state for the new job's
            self.conclude(name, "Failed", "FailedJobs", "jobset failed due to one or more job failures")
            return 201, job
        self.parts[name] = build_job(job, self.runtimes[f"{place}/{reference['name']}"])
        self.jobsets[name] = None
        if not self.queued:
            self.start(name)
        return 201, job

    def reconcile(self, name):
        """What the garbage collector has done by the next look."""
        if (looks := self.jobsets.get(name)) is not None:
            self.jobsets[name] = looks - 1
            if looks <= 1:
                del self.jobsets[name]
                self.pods.pop(name, None)

    def start(self, name):
        """The pods start; of a queued job as Kueue does it when there is room."""
        counts = {"active": 1, "failed": 0, "ready": 1, "succeeded": 0, "suspended": 0}
        self.jobs[name]["spec"]["suspend"] = False
        self.jobs[name]["status"] = {"jobsStatus": [{"name": "node", **counts}]}
        nodes = self.parts[name]["template"]["spec"]["completions"]
        self.pods[name] = [Pod(name, self.parts[name], node) for node in range(nodes)]
        self.on_start(self, name)

    def one(self, method, name, options):
        self.reconcile(name)
        job = self.jobs.get(name)
        if name not in self.jobs:
            return found(None)
        if method == "DELETE":
            assert options["preconditions"]["uid"] == job["metadata"]["uid"]
            self.deleted.append((name, options["propagationPolicy"]))
            if name in self.jobsets:
                self.jobsets[name] = self.lag
            del self.jobs[name]
        return 200, job

    def forget(self, name):
        for objects in (self.jobs, self.jobsets, self.parts, self.pods):
            objects.pop(name, None)

    def select(self, selector):
        wanted = dict(pair.split("=") for pair in selector.split(","))
        pods = [pod.to_dict() for pods in self.pods.values() for pod in pods]
        return [pod for pod in pods if wanted.items() <= pod["metadata"]["labels"].items()]


def found(content):
    return (200, content) if content else (404, {"message": "not found"})


def respond(api, request):
    url = urlsplit(request.path)
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    api.calls.append((request.method, url.path))
    if api.outage > 0 and "trainjobs" in url.path:
        api.outage -= 1
        return Answer(503, {"message": "the server is restarting"})
    return Answer(*api.answer(request.method, url.path, query, json.loads(request.body or "null")))
