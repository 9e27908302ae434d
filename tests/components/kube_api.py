"""A Kubernetes API server for TrainJobs, with its controllers, as far as our launcher and the kubeflow SDK talk to one.

A TrainJob that is created gets a JobSet and a pod a node (trainer.py). What the pods do is the test's business:
`Pod.say`, `Api.exit`, `Api.finish`. Controllers work when the job is looked at, so that a test never waits for them;
garbage is collected `lag` looks after its owner was deleted.
"""

import json
import re
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.components.trainer import RUNTIME, Pod, admit, build_job_set, now, objections
from tests.local_server import Answer, LocalServer

GROUP = "/apis/trainer.kubeflow.org/v1alpha1"
SPACE = "namespaces/vision"
DEPLOY = Path(__file__).parents[2] / "deploy"


class Api:
    """`drop_log_after`: lines after which a followed log is cut off, once. `outage`: calls answered with 503."""

    def __init__(self):
        self.version, self.lag, self.queued = "2.3", 1, False
        self.jobs, self.sets, self.pods, self.events, self.created = {}, {}, {}, [], []
        self.workflows, self.launchers, self.garbage, self.deleted = {}, {}, [], []
        self.calls, self.outage, self.drop_log_after, self.refuse_create = [], 0, 0, None
        self.refuse_cluster, self.refuse_patch = False, False
        self.remakes = 2  # of the JobSet of a job that is being deleted in the foreground
        self.starts = []  # names of jobs, each time that pods of theirs start
        self.runtimes = {"clustertrainingruntimes/torch-distributed": RUNTIME}
        self.on_create = lambda api, name: None  # the TrainJob is there, and usually its pods
        self.on_start = lambda api, name: None  # its pods are
        self.server = LocalServer(lambda request: respond(self, request))
        self.url = self.server.url

    # --- what a test does -----------------------------------------------------------------------------------------

    def apply(self, file):
        """A TrainingRuntime of deploy/ in the namespace."""
        runtime = yaml.safe_load((DEPLOY / file).read_text())
        self.runtimes[f"{SPACE}/trainingruntimes/{runtime['metadata']['name']}"] = runtime

    def exit(self, name, node, code):
        """The container of a node ends; what Kubernetes, JobSet and Trainer make of it."""
        pod = next(pod for pod in self.pods[name] if pod.node == node)
        pod.code = code
        child = self.sets[name]["spec"]["replicatedJobs"][0]["template"]["spec"]
        if code == 0:
            pod.phase = "Succeeded"
            if all(other.phase == "Succeeded" for other in self.pods[name]):
                self.conclude(name, "Completed", "AllJobsCompleted", "jobset completed successfully")
        elif child["template"]["spec"]["restartPolicy"] == "Never":  # with backoffLimit 0, as our runtime has both
            assert child["backoffLimit"] == 0
            pod.phase = "Failed"
            self.pods[name] = [other for other in self.pods[name] if other.code is not None]
            self.fail(name)
        elif pod.restarts < child.get("backoffLimit", 6):
            pod.restart()
        else:
            self.pods[name] = []
            self.fail(name)

    def finish(self, name):
        for pod in list(self.pods.get(name, [])):  # deleted in between, there are none
            self.exit(name, pod.node, 0)

    def fail(self, name):
        if "failurePolicy" in self.sets[name]["spec"]:
            reason, message = "ReachedMaxRestarts", "jobset failed due to reaching max number of restarts"
        else:
            reason, message = "FailedJobs", "jobset failed due to one or more job failures"
        self.conclude(name, "Failed", reason, message)

    def conclude(self, name, kind, reason, message):
        self.sets[name]["status"]["conditions"] = [condition(kind, reason, message)]

    def exceed_deadline(self, name):
        self.jobs[name]["status"] = {"conditions": [condition("Failed", "DeadlineExceeded", "deadline exceeded")]}
        self.sets.pop(name), self.pods.pop(name)

    def resume(self, name):
        """As Kueue does when there is room."""
        self.jobs[name]["spec"]["suspend"] = False

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
        if path == f"{GROUP}/{SPACE}/trainjobs" and method == "POST":
            return self.create(body)
        if match := re.fullmatch(rf"{GROUP}/{SPACE}/trainjobs/([\w-]+)", path):
            return self.one(method, match[1], body or {})
        if "/clustertrainingruntimes/" in path and self.refuse_cluster:
            return 403, status(403, "Forbidden", "clustertrainingruntimes is forbidden")
        if path.startswith(GROUP) and (runtime := self.runtimes.get(path.removeprefix(f"{GROUP}/"))):
            return 200, runtime
        if match := re.fullmatch(rf"/apis/jobset.x-k8s.io/v1alpha2/{SPACE}/jobsets/([\w-]+)", path):
            return found(self.sets.get(match[1]), path)
        if match := re.fullmatch(rf"/apis/argoproj.io/v1alpha1/{SPACE}/workflows/([\w-]+)", path):
            return found(self.workflows.get(match[1]), path)
        if match := re.fullmatch(rf"/api/v1/{SPACE}/pods/([\w-]+)", path):
            return found(self.launchers.get(match[1]), path)
        if path == f"/api/v1/{SPACE}/pods":
            return 200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": self.select(query)}
        if path == f"/api/v1/{SPACE}/events":
            return 200, {"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": self.events}
        return found(None, path)

    def create(self, body):
        from kubeflow_trainer_api import models  # a thousand, which every process that collects tests would wait for

        if self.refuse_create:
            return self.refuse_create, status(self.refuse_create, "Forbidden", "trainjobs is forbidden")
        name = body["metadata"]["name"]
        if name in self.jobs:
            return 409, status(409, "AlreadyExists", f'trainjobs "{name}" already exists')
        models.TrainerV1alpha1TrainJob.from_dict(body)
        job = admit(body, self.version, self.queued)
        runtime = self.runtime_of(job)
        against = objections(job, runtime) if runtime else "specified runtime must be created before the TrainJob"
        if against:
            return 403, status(403, "Forbidden", f'admission webhook "validator.trainjob" denied: {against}')
        self.created.append(body)
        self.jobs[name] = job
        self.reconcile(name)
        self.on_create(self, name)
        return 201, job

    def one(self, method, name, options):
        self.collect()
        if name not in self.jobs:
            return found(None, f"trainjobs/{name}")
        job = self.jobs[name]
        if method == "DELETE":
            wanted = (options.get("preconditions") or {}).get("uid", job["metadata"]["uid"])
            if wanted != job["metadata"]["uid"]:
                return 409, status(409, "Conflict", "the UID in the precondition does not match")
            self.deleted.append(name)
            foreground = options.get("propagationPolicy") == "Foreground"
            if foreground:
                job["metadata"] |= {"deletionTimestamp": now(), "finalizers": ["foregroundDeletion"]}
            else:
                del self.jobs[name]
            self.garbage.append([self.lag, name, job["metadata"]["uid"], self.remakes if foreground else 0])
            return 200, job
        if method == "PATCH":
            if self.refuse_patch:
                return 403, status(403, "Forbidden", "trainjobs is forbidden: cannot patch")
            if options.get("metadata", {}).get("uid", job["metadata"]["uid"]) != job["metadata"]["uid"]:
                return 409, status(409, "Conflict", "the UID in the object does not match")
            job["spec"] |= options.get("spec", {})
            for kind in ("labels", "annotations"):
                job["metadata"].setdefault(kind, {}).update(options.get("metadata", {}).get(kind, {}))
        self.reconcile(name)
        return 200, job

    def collect(self):
        """One look's worth of garbage collection: a JobSet goes some time after its TrainJob, and its pods with it."""
        for item in list(self.garbage):
            item[0] -= 1
            if item[0] < 0:
                self.garbage.remove(item)
                _, name, uid, remakes = item
                if name in self.sets and owner(self.sets[name]) == uid:
                    del self.sets[name]
                    self.pods.pop(name, None)
                conditions = self.jobs.get(name, {}).get("status", {}).get("conditions", [])
                over = {one["type"] for one in conditions}
                if remakes and not over & {"Complete", "Failed"}:  # Trainer 2.3 does not look at deletionTimestamp
                    self.reconcile(name, deleting=True)
                    self.garbage.append([self.lag, name, uid, remakes - 1])
                elif name in self.jobs and self.jobs[name]["metadata"]["uid"] == uid:
                    del self.jobs[name]

    def reconcile(self, name, deleting=False):
        """As Trainer's controller: no JobSet beside one of the same name, and its conditions, whosever it is."""
        job = self.jobs[name]
        status_ = job.setdefault("status", {})
        kept = {c["type"]: c for c in status_.get("conditions", [])}
        too_late = kept.get("Failed", {}).get("reason") == "DeadlineExceeded"
        if ("deletionTimestamp" in job["metadata"] and not deleting) or too_late:
            return
        kept.pop("Failed", None)
        if "Complete" not in kept and name not in self.sets:
            self.sets[name] = build_job_set(job, self.runtime_of(job))
        ours, suspended = self.sets[name], job["spec"]["suspend"]
        if owner(ours) == job["metadata"]["uid"]:
            ours["spec"]["suspend"] = suspended
            if suspended and name in self.pods:  # JobSet deletes the pods
                self.pods.pop(name)
            if not suspended and name not in self.pods:
                self.pods[name] = [Pod(ours, node) for node in range(nodes_of(ours))]
                self.starts.append(name)
                self.on_start(self, name)
        if suspended:
            kept.setdefault("Suspended", condition("Suspended", "Suspended", "TrainJob is suspended"))
        elif kept.get("Suspended", {}).get("status") == "True":
            kept["Suspended"] = condition("Suspended", "Resumed", "TrainJob is resumed", "False")
        for copied in ours["status"].get("conditions", []):
            kind = {"Completed": "Complete"}.get(copied["type"], copied["type"])
            kept[kind] = {**copied, "type": kind}
        active = sum(pod.code is None for pod in self.pods.get(name, []))
        counts = {"active": int(active > 0), "failed": 0, "ready": int(active > 0), "succeeded": 0, "suspended": 0}
        status_["jobsStatus"] = [{"name": "node", **counts}]
        status_["conditions"] = list(kept.values())
        if not kept:
            del status_["conditions"]

    def runtime_of(self, job):
        reference = job["spec"]["runtimeRef"]
        place = f"{SPACE}/trainingruntimes" if reference["kind"] == "TrainingRuntime" else "clustertrainingruntimes"
        return self.runtimes.get(f"{place}/{reference['name']}")

    def select(self, query):
        pods = [pod.to_dict() for pods in self.pods.values() for pod in pods]
        selector = query.get("labelSelector", "")
        sets = {name: values.split(", ") for name, values in re.findall(r"([\w./-]+) in \(([^)]*)\)", selector)}
        sets |= {name: [value] for name, value in re.findall(r"([\w./-]+)=([\w.-]+)", selector)}
        return [pod for pod in pods if all(pod["metadata"]["labels"].get(name) in sets[name] for name in sets)]

    def pod(self, name):
        return next((pod for pods in self.pods.values() for pod in pods if pod.name == name), None)


def owner(job_set):
    return job_set["metadata"]["ownerReferences"][0]["uid"]


def nodes_of(job_set):
    return job_set["spec"]["replicatedJobs"][0]["template"]["spec"]["completions"]


def condition(kind, reason, message, value="True"):
    return {"type": kind, "status": value, "reason": reason, "message": message, "lastTransitionTime": now()}


def found(content, path):
    return (200, content) if content else (404, status(404, "NotFound", f"{path} not found"))


def status(code, reason, message):
    kind = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
    return {**kind, "reason": reason, "message": message, "code": code}


def respond(api, request):
    url = urlsplit(request.path)
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    api.calls.append((request.method, url.path))
    if api.outage > 0 and "trainjobs" in url.path:
        api.outage -= 1
        return Answer(503, status(503, "ServiceUnavailable", "the server is restarting"))
    if url.path.endswith("/log"):
        pod = api.pod(url.path.split("/")[-2])
        if pod is None:
            return Answer(404, status(404, "NotFound", "pod not found"))
        return Answer(200, log(api, pod, query.get("follow") == "True"), {"Content-Type": "text/plain"})
    return Answer(*api.answer(request.method, url.path, query, json.loads(request.body or "null")))


def log(api, pod, follow):
    """The lines until the container has ended. After `drop_log_after` of them the connection is cut, once."""
    sent, lines = 0, pod.lines
    while True:
        ended = pod.code is not None or pod.lines is not lines or not follow or api.pod(pod.name) is None
        for line in lines[sent:]:
            yield f"{line}\n".encode()
            sent += 1
            if follow and api.drop_log_after and sent >= api.drop_log_after:
                api.drop_log_after = 0
                raise ConnectionAbortedError
        if ended:
            return
        time.sleep(0.02)
