"""The stage train as a TrainJob of Kubeflow Trainer, on one node or several: finds or creates the run's job and follows
it to its end.

The job's name is made of the run's id. So the launcher that replaces a lost one finds the run's job, follows it or
takes its result; a failed job is replaced by a new one, which resumes from the checkpoints."""

import hashlib
import os
import signal
import sys
import time
from collections import deque
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, NoReturn

import yaml

from must.base import storage
from must.base.errors import TransientError, UserError
from must.base.lock import RUN_ID
from must.base.parameters import require
from must.base.program import BUG, HELD, PREEMPTED, TIME_OVER, WRONG_INPUT, Ended, handling
from must.base.storage import list_names
from must.base.text import make_one_line
from must.config.work import DESCRIPTION_FILE, JOB_BUNDLE, JOB_FILE, Workspace
from must.model.description import read_summary
from must.pods.notes import Facts, parse_failure
from must.pods.training import describe_bundle, make_job_values, report_labels
from must_components.cluster import RUN, TRAINER, KubernetesApi, is_stopped

NODE = "node"  # the replicated job and the container of Kubeflow Trainer's torch runtimes
MODEL = "must/model"  # label: the model's name in the registry
POD_LABELS = {"app.kubernetes.io/name": "must"}  # of the job and its pods; used by deploy/network-policy.yaml
NO_SIDECAR = {"sidecar.istio.io/inject": "false"}  # in a mesh torchrun's processes do not reach each other


def make_manifest(name: str, nodes: dict[str, Any], job: str, run_id: str, model: str) -> dict[str, Any]:
    """The job that runs `must.pods.training` for the folder `job` on every node; the runtime's kind is missing.

    `nodes`: from `encode_nodes` in must_pipeline/placement.py."""
    gpus = int(nodes["gpus"])
    processes = max(1, gpus) if nodes["processes"] == "auto" else int(nodes["processes"])
    trainer: dict[str, Any] = {
        "image": nodes["image"],
        "numNodes": int(nodes["nodes"]),
        "command": ["python", "-m", "must.model.distributed"],
        # Trainer gives torchrun the nodes and the meeting point by PET_ variables; a flag wins over them.
        "args": [f"--nproc-per-node={processes}", "-m", "must.pods.training", job],
        "env": nodes["env"],
    }
    resources = {nodes["accelerator"]: str(gpus)} if gpus else {}
    resources |= {key: nodes[key] for key in ("cpu", "memory") if nodes[key]}
    if resources:
        trainer["resourcesPerNode"] = {"requests": resources, "limits": resources}
    labels = {RUN: run_id, MODEL: model.rstrip("-._")}  # Kubernetes' rule for a label's end
    return {
        "apiVersion": f"{TRAINER}/v1alpha1",
        "kind": "TrainJob",
        "metadata": {
            "name": name,
            "labels": POD_LABELS | nodes["labels"] | {key: value for key, value in labels.items() if value},
        },
        "spec": {
            "runtimeRef": {"name": nodes["runtime"]},
            "activeDeadlineSeconds": int(nodes["deadline"]),
            "trainer": trainer,
            "runtimePatches": [{"manager": "must/launcher", "trainingRuntimeSpec": make_pod_patch(nodes)}],
        },
    }


def make_pod_patch(nodes: dict[str, Any]) -> dict[str, Any]:
    """Selector, tolerations, volumes and service account, at the depth where a TrainJob has them."""
    mounts = nodes["mounts"]
    pod = nodes["pod"] | ({"containers": [{"name": NODE, "volumeMounts": mounts}]} if mounts else {})
    # Istio reads the label, its older versions the annotation.
    metadata = {"labels": {**POD_LABELS, **nodes["labels"], **NO_SIDECAR}, "annotations": NO_SIDECAR}
    template = {"metadata": metadata, "spec": pod}
    job = {"name": NODE, "template": {"spec": {"template": template}}}
    return {"template": {"spec": {"replicatedJobs": [job]}}}


POLL_JOB = 5.0  # seconds between requests for the job's state and its new log lines
API_TIMEOUT = 600.0  # seconds without an answer of the API server after which the launcher ends; the job continues
GONE = 300.0  # seconds for a deleted job's pods to stop: they may save a checkpoint first
INDEX = "batch.kubernetes.io/job-completion-index"
LINES = 30  # of a failed job's log and of its events, for its last message


def train_on_nodes(
    facts: Facts, work_uri: str, *, index_sha256: str, classifier: str, bundle: str, nodes: dict[str, Any],
    preset: str = "", settings: dict[str, Any] | None = None, epochs: int = 0, model_name: str = "", answers: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Trains in the run's TrainJob, which a retry follows. Exits with the nodes' code if it fails, with 75 if this
    process is stopped.

    Args:
        nodes: settings of the TrainJob's nodes, from cluster.yaml.
        model_name: the model's name in the registry, which labels the job.

    Raises ValueError: the cluster refuses the job; TransientError: Kubernetes' API gave no answer for API_TIMEOUT."""
    run_id = os.environ.get(RUN_ID, "")
    key, values = make_job_values(work_uri, index_sha256, classifier, preset, settings or {}, epochs)
    job = Workspace(work_uri).place("jobs", run_id or key)
    facts.trainjob = f"must-train-{hashlib.sha256(job.encode()).hexdigest()[:12]}"
    facts.checkpoints = values["checkpoints"]
    facts.save()
    labels = Workspace(work_uri).place("labels", key)
    parameters = {**values, "classifier": Workspace(job).place("classifier")}
    content = {"train": parameters, "answers": answers, "labels": labels}
    # the nodes cannot read this pod's files
    storage.write_bytes(parameters["classifier"], storage.read_bytes(classifier))
    storage.write_bytes(storage.join(job, JOB_FILE), yaml.safe_dump(content).encode())
    if (cluster := KubernetesApi.of_this_pod()) is None:
        raise UserError("train: a TrainJob is submitted in a pod of the cluster only")
    made = storage.join(job, JOB_BUNDLE)
    Launch(cluster, make_manifest(facts.trainjob, nodes, job, run_id, model_name), run_id, made).run()
    copy_bundle(made, bundle)
    summary = read_summary(bundle)
    facts.result = f"{summary.steps:,} steps on {int(nodes['nodes'])} nodes, {summary.images_per_s} images/s"
    if answers:
        report_labels(facts, labels)
    return describe_bundle(bundle, summary)


def copy_bundle(uri: str, folder: str) -> None:
    for name in list_names(uri):
        storage.download(storage.join(uri, name), storage.join(folder, name))


class RunStoppedError(BaseException):
    """SIGTERM. Not an Exception, so that no handler of errors keeps it."""


def stop(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # SIGTERM may come twice
    raise RunStoppedError


class Launch:
    """One run's TrainJob, from its creation, or from an earlier launcher's, to its end."""

    def __init__(self, cluster: KubernetesApi, manifest: dict[str, Any], run_id: str, bundle: str) -> None:
        self.cluster, self.manifest, self.run_id, self.bundle = cluster, manifest, run_id, bundle
        self.name: str = manifest["metadata"]["name"]
        self.log = JobLog(cluster, self.name)
        self.workflow = ""
        with suppress(TransientError):
            self.workflow = cluster.workflow_name()  # read now: after SIGTERM there is half a second

    def run(self) -> None:
        """Returns when the job is complete."""
        with handling(signal.SIGTERM, stop):
            try:
                self.find_or_create()
                outcome, reason = self.follow()
            except RunStoppedError:
                print(f"stopped by SIGTERM; the TrainJob {self.name} {self.end_with_run()}", file=sys.stderr)
                raise SystemExit(PREEMPTED) from None
        if outcome == "Failed":
            self.report(reason)

    def end_with_run(self) -> str:
        """Deletes the job if the whole run is being stopped. If only this pod is, the next launcher follows the job."""
        with suppress(TransientError):
            if self.workflow and ((workflow := self.cluster.workflow(self.workflow)) is None or is_stopped(workflow)):
                return self.cluster.end_job(self.name, self.run_id)
        return "continues; the next launcher follows it, or the run's end deletes it"

    def find_or_create(self) -> None:
        job = self.get()
        if job is not None:
            outcome, _ = read_outcome(job)
            if outcome == "Failed":
                print(f"the TrainJob {self.name} failed before; starting it again from its checkpoints", flush=True)
            elif outcome == "Complete" and not storage.exists(storage.join(self.bundle, DESCRIPTION_FILE)):
                print(f"the TrainJob {self.name} is complete, but its model is gone; training again", flush=True)
            else:
                print(f"following the TrainJob {self.name} ({outcome or 'Running'})", flush=True)
                return
            self.ask(partial(self.cluster.delete_job, job))
        self.wait_until_gone()
        runtime = self.manifest["spec"]["runtimeRef"]
        runtime["kind"] = self.ask(lambda: self.cluster.runtime_kind(runtime["name"]))
        status, job = self.ask(lambda: self.cluster.request("POST", self.cluster.job_path(), self.manifest))
        if status == 409:  # an earlier request of this launcher succeeded, but its answer was lost
            print(f"following the TrainJob {self.name}", flush=True)
            return
        if status >= 400:
            hint = "; give the service account the role in deploy/trainjobs.yaml" if status == 403 else ""
            message = make_one_line(job.get("message") or "no reason")[:500]
            raise UserError(f"the TrainJob {self.name} could not be submitted ({status}: {message}{hint})")
        if "runtimePatches" not in job["spec"]:  # Kubernetes silently drops unknown fields
            self.ask(partial(self.cluster.delete_job, job))
            raise UserError(
                f"the TrainJob {self.name} came back without runtimePatches (service account, pool, volumes) and was "
                "deleted: Kubeflow Trainer 2.2 or newer is needed"
            )
        print(f"submitted the TrainJob {self.name}: {job['spec']['trainer']['numNodes']} nodes", flush=True)

    def wait_until_gone(self) -> None:
        """Returns when nothing is left of an earlier job: beside its JobSet, Trainer makes no new one and takes its
        state for the new job's; and its pods may still write checkpoints."""
        deadline = time.monotonic() + GONE
        while self.get() is not None or self.ask(partial(self.cluster.has_remains, self.name)):
            if time.monotonic() > deadline:
                raise TransientError(f"pods of an earlier TrainJob {self.name} have not ended in {GONE:g} s")
            time.sleep(POLL_JOB)

    def follow(self) -> tuple[str, str]:
        """Prints the log of rank 0 until the job is over. Returns Complete or Failed, and why."""
        queued = False
        while (job := self.get()) is not None:
            self.log.print_new()
            outcome, reason = read_outcome(job)
            if outcome:
                self.log.print_new()  # a short job may end before its log exists
                return outcome, reason
            suspended = bool(job["spec"].get("suspend"))
            if suspended and not queued:
                print(f"the TrainJob {self.name} waits in its queue; its time does not count yet", flush=True)
            queued = suspended
            time.sleep(POLL_JOB)
        reason = f"the TrainJob {self.name} was deleted by another program; its checkpoints stay"
        print(reason, file=sys.stderr)
        raise Ended(BUG, reason)

    def get(self) -> dict[str, Any] | None:
        """The job, or None if there is none. Raises ValueError: it is not this run's; it is not changed."""
        status, job = self.ask(lambda: self.cluster.request("GET", self.cluster.job_path(self.name)))
        if status == 404:
            return None
        require(status == 200, f"the TrainJob {self.name} cannot be read ({status}); apply deploy/trainjobs.yaml")
        owner = (job["metadata"].get("labels") or {}).get(RUN, "")
        require(
            owner == self.run_id,
            f"there is a TrainJob {self.name} of another run ({owner or 'no label'}); it was not changed. Delete it, "
            "then retry.",
        )
        return dict(job)

    def ask(self, action: Any) -> Any:
        """`action`, repeated while the API server does not answer."""
        return storage.repeat(f"the TrainJob {self.name} (it runs on)", action, timeout=API_TIMEOUT)

    def report(self, outcome: str) -> NoReturn:
        """Prints the last lines of the node that failed first, and Kubernetes' events. Exits with the nodes' code; the
        reason is what that node said."""
        failed, lines, title, events = list[FailedNode](), list(self.log.last), "rank 0", ["(no events)"]
        reason = f"the TrainJob {self.name} failed ({outcome})"
        with suppress(TransientError):
            failed = list_failed_nodes(self.cluster, self.name)
            if failed:
                title = f"node {failed[0].node}, exit code {failed[0].code}"
                lines = self.cluster.pod_log(failed[0].pod).splitlines()
                reason = f"node {failed[0].node}: {failed[0].reason}"
            events = self.cluster.events(self.name)[-LINES:] or events
        text = [f"the TrainJob {self.name} failed ({outcome}). Last lines of {title}:"]
        text += [f"  {line}" for line in lines[-LINES:] or ["(no log)"]]
        text += ["Events:", *(f"  {event}" for event in events)]
        code = TIME_OVER if outcome.startswith("DeadlineExceeded") else exit_code([node.code for node in failed])
        print("\n".join(text), file=sys.stderr, flush=True)
        raise Ended(code, reason)


def read_outcome(job: dict[str, Any]) -> tuple[str, str]:
    """Complete, Failed, or '' while the job runs, and why."""
    for condition in job.get("status", {}).get("conditions", []):
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return condition["type"], f"{condition.get('reason', '')}: {condition.get('message', '')}"
    return "", ""


def exit_code(codes: list[int]) -> int:
    """2 or 73 if any node has it (wrong input; another run has the lock); 75 if all nodes saved their work; else 1."""
    for code in (WRONG_INPUT, HELD):
        if code in codes:
            return code
    return PREEMPTED if codes and set(codes) == {PREEMPTED} else BUG


class JobLog:
    """Prints the new lines of rank 0, also of a pod or a container that replaced another one."""

    def __init__(self, cluster: KubernetesApi, name: str) -> None:
        self.cluster, self.name = cluster, name
        self.pod, self.container, self.since = "", "", ""  # the last is the timestamp of the newest printed line
        self.last: deque[str] = deque(maxlen=LINES)

    def print_new(self) -> None:
        with suppress(TransientError):  # the job's state matters, not the log
            if (current := self.find()) is None:
                return
            pod, container = current
            if container != self.container:
                if self.container:
                    event = f"was replaced by {pod}" if pod != self.pod else "was restarted in place"
                    print(f"[{self.pod} {event}]", flush=True)
                self.pod, self.container, self.since = pod, container, ""
            lines = (line.partition(" ") for line in self.cluster.pod_log(pod, since=self.since).split("\n") if line)
            for time, _, text in [line for line in lines if line[0] > self.since]:  # it begins at a whole second
                print(text, flush=True)
                self.last.append(text)
                self.since = time

    def find(self) -> tuple[str, str] | None:
        """The newest pod of the first node and its current container, once it runs."""
        for pod in self.cluster.node_pods(self.name):
            if pod["metadata"]["labels"].get(INDEX) == "0":
                statuses = pod.get("status", {}).get("containerStatuses", [])
                running = {status["name"]: status.get("containerID") for status in statuses}
                return (pod["metadata"]["name"], running[NODE]) if running.get(NODE) else None
        return None


class FailedNode(NamedTuple):
    node: str
    code: int
    pod: str
    reason: str  # what it said, or Kubernetes'


def list_failed_nodes(cluster: KubernetesApi, name: str) -> list[FailedNode]:
    """The failed containers, by time; those that ended because a peer failed come last."""
    failed: list[tuple[bool, str, FailedNode]] = []
    for pod in cluster.node_pods(name):
        for status in pod.get("status", {}).get("containerStatuses", []):
            states: list[dict[str, Any]] = [status.get("state") or {}, status.get("lastState") or {}]
            ended = next((state["terminated"] for state in states if "terminated" in state), None)
            if ended and ended["exitCode"]:
                code, time = int(ended["exitCode"]), ended.get("finishedAt") or pod["metadata"]["creationTimestamp"]
                said = parse_failure((ended.get("message") or "").partition("\n")[0])
                reason = said.text if said else f"exit code {code} ({ended.get('reason') or 'no reason given'})"
                index = pod["metadata"]["labels"].get(INDEX, "?")
                failed.append((code == PREEMPTED, time, FailedNode(index, code, pod["metadata"]["name"], reason)))
    return [node for _, _, node in sorted(failed)]
