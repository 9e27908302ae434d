"""Kubernetes' API with a pod's service account: what an Argo workflow says about a run's stages, and the end of a run.
And the functions of the stages inputs, summary and is-anything-new. Standard library only: no image has a client.

Kubeflow deletes pods half a second after a run is stopped, before a launcher can end its TrainJob or a stage can write
its last note. `settle_run` completes the notes from the cluster's state and deletes the TrainJob; if its requests fail,
the page is still written."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import os
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from must.base.errors import TransientError, UserError
from must.base.parameters import require
from must.base.program import BUG, format_error
from must.base.storage import is_transient, parse_object_or_none, wait_for_credentials
from must.pods.notes import NOTHING_NEW, Facts, Failure, Note, read_notes, write_note
from must.pods.summary import summarize, write_good_page, write_page
from must.table import COMPONENTS

logger = logging.getLogger(__name__)


ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # a pod's token, certificate and namespace
TIMEOUT = 30  # seconds
TRAINER, JOBSET = "trainer.kubeflow.org", "jobset.x-k8s.io"
ROLE = "give it the role in deploy/trainjobs.yaml"
RUN = "pipeline/runid"  # label: the run whose TrainJob it is; nothing deletes or follows a job of another run


class KubernetesApi:
    def __init__(self, url: str, account: Path) -> None:
        self.url, self.account = url, account
        self.namespace = (account / "namespace").read_text().strip()

    @classmethod
    def of_this_pod(cls) -> KubernetesApi | None:
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host or not (ACCOUNT / "token").is_file():
            return None
        return cls(f"https://{f'[{host}]' if ':' in host else host}:{port}", ACCOUNT)

    def request(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> tuple[int, Any]:
        """(HTTP status, JSON object). Raises TransientError: no response, or an error of the server."""
        status, content = self.send(method, path, body, kind)
        return status, parse_object_or_none(content, dict) or {}

    def send(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {(self.account / 'token').read_text().strip()}", "Content-Type": kind}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        trusted = ssl.create_default_context(cafile=self.account / "ca.crt") if self.url.startswith("https") else None
        no_proxy = urllib.request.ProxyHandler({})  # urllib does not support address ranges in $NO_PROXY
        opener = urllib.request.build_opener(no_proxy, urllib.request.HTTPSHandler(context=trusted))
        try:
            with opener.open(request, timeout=TIMEOUT) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(100_000)
            if is_transient(error.code):
                raise TransientError(f"the API server of Kubernetes answers {error.code}") from None
            return error.code, text
        except OSError as error:
            raise TransientError(f"the API server of Kubernetes does not answer ({type(error).__name__})") from None

    def check_trainer(self, runtime: str) -> None:
        """Raises ValueError: the training runtime does not exist, or a permission of the launcher is missing."""
        self.runtime_kind(runtime)
        for group, kind, verb in ((TRAINER, "TrainJobs", "create"), (JOBSET, "JobSets", "get")):
            attributes = {"namespace": self.namespace, "group": group, "resource": kind.lower(), "verb": verb}
            review = {
                "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": attributes},
            }  # fmt: skip
            status, response = self.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
            allowed = status >= 400 or response.get("status", {}).get("allowed")  # it may not answer the question
            require(bool(allowed), f"train: the service account may not {verb} {kind} in {self.namespace}; {ROLE}")

    def runtime_kind(self, runtime: str) -> str:
        """TrainingRuntime or ClusterTrainingRuntime: the one of this name that is there."""
        path = f"/apis/{TRAINER}/v1alpha1/namespaces/{self.namespace}/trainingruntimes/{runtime}"
        status, _ = self.request("GET", path)
        if status == 200:
            return "TrainingRuntime"
        if self.request("GET", f"/apis/{TRAINER}/v1alpha1/clustertrainingruntimes/{runtime}")[0] == 200:
            return "ClusterTrainingRuntime"
        require(
            status not in (401, 403),
            f"train: the service account may not read training runtimes in {self.namespace}; {ROLE}",
        )
        raise UserError(
            f"train: there is no training runtime {runtime} in {self.namespace}: is Kubeflow Trainer 2 installed, and "
            "deploy/training-runtime.yaml applied? (for a runtime of the cluster also deploy/trainjobs-cluster.yaml)"
        )

    def job_path(self, name: str = "") -> str:
        """Of a TrainJob, or of all of them."""
        return f"/apis/{TRAINER}/v1alpha1/namespaces/{self.namespace}/trainjobs" + (f"/{name}" if name else "")

    def delete_job(self, job: dict[str, Any]) -> int:
        """Deletes this TrainJob, not a newer one of the same name; returns the HTTP status. It is gone at once, its
        JobSet and pods later: as long as there is a job that is not complete, Trainer 2.3 makes its JobSet again."""
        options = {"propagationPolicy": "Background", "preconditions": {"uid": job["metadata"]["uid"]}}
        status, _ = self.request("DELETE", self.job_path(job["metadata"]["name"]), options)
        return status

    def end_job(self, name: str, run_id: str) -> str:
        """Deletes the run's TrainJob. Returns a clause about the outcome."""
        status, job = self.request("GET", self.job_path(name))
        if status == 200:
            if (owner := (job["metadata"].get("labels") or {}).get(RUN, "")) != run_id:
                return f"belongs to the run {owner or '(no label)'} and was not deleted"
            status = self.delete_job(job)
        if status < 400 or status in (404, 409):
            return "was deleted; its checkpoints stay"
        return f"still runs ({status}): kubectl delete trainjob {name} -n {self.namespace}"

    def has_remains(self, job: str) -> bool:
        """Whether the JobSet or a pod of a TrainJob is still there."""
        status, _ = self.request("GET", f"/apis/{JOBSET}/v1alpha2/namespaces/{self.namespace}/jobsets/{job}")
        require(status in (200, 404), f"the JobSet {job} cannot be read ({status}); {ROLE}")
        return status == 200 or bool(self.node_pods(job))

    def node_pods(self, job: str) -> list[dict[str, Any]]:
        """The pods of a TrainJob's nodes, the newest first."""
        selector = f"jobset.sigs.k8s.io/jobset-name={job},jobset.sigs.k8s.io/replicatedjob-name=node"
        path = f"/api/v1/namespaces/{self.namespace}/pods?labelSelector={urllib.parse.quote(selector)}"
        pods = self.request("GET", path)[1].get("items", [])
        return sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), reverse=True)

    def pod_log(self, pod: str, since: str | None = None) -> str:
        """The log of a node's pod. With `since`, a timestamp or '', each line begins with its timestamp, and lines
        before that second are left out."""
        query = {"container": "node"} | ({} if since is None else {"timestamps": "true"})
        query |= {"sinceTime": since} if since else {}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log?{urllib.parse.urlencode(query)}"
        status, text = self.send("GET", path)
        return text.decode(errors="replace") if status == 200 else ""

    def events(self, name: str) -> list[str]:
        """Kubernetes' events about the objects whose names contain `name`, the oldest first."""
        items = self.request("GET", f"/api/v1/namespaces/{self.namespace}/events")[1].get("items", [])
        items.sort(key=lambda it: it.get("lastTimestamp") or it.get("firstTimestamp") or it.get("eventTime") or "")
        about = [(it["involvedObject"], f"{it.get('reason')}: {it.get('message')}") for it in items]
        return [f"{it['kind']} {it['name']}: {text}" for it, text in about if name in it.get("name", "")]

    def workflow_name(self) -> str:
        """The Argo workflow that this pod belongs to; '' if it is not known."""
        _, pod = self.request("GET", f"/api/v1/namespaces/{self.namespace}/pods/{os.environ.get('KFP_POD_NAME', '-')}")
        labels = pod.get("metadata", {}).get("labels") or {}
        return str(labels.get("workflows.argoproj.io/workflow", ""))

    def workflow(self, name: str) -> dict[str, Any] | None:
        """An Argo workflow; None if it was deleted. Raises TransientError: it cannot be read."""
        status, workflow = self.request(
            "GET", f"/apis/argoproj.io/v1alpha1/namespaces/{self.namespace}/workflows/{name}"
        )
        if status not in (200, 404):
            raise TransientError(f"the workflow {name} cannot be read ({status})")
        return workflow if status == 200 else None


def check_inputs(facts: Facts, work_uri: str, *, runtime: str = "", **run: Any) -> dict[str, str]:
    """Checks the run's parameters, its input files and the folders that it writes to, before a later stage would refuse
    them; and whether the cluster would refuse a TrainJob.

    Args:
        runtime: the TrainJob's training runtime; '' if training is no TrainJob.

    Returns:
        fingerprint: a sha256 of class file and model."""
    from must.pods import check  # not in the image of the launcher

    facts.result, fingerprint = check.check_inputs(run | {"work_uri": work_uri}, work_uri)
    if runtime and (cluster := KubernetesApi.of_this_pod()) is not None:
        cluster.check_trainer(runtime)
    return {"fingerprint": fingerprint}


def summarize_run(work_uri: str, *, run_id: str, run_summary: str) -> None:
    """The exit task: summarizes the stages' notes: which one failed, its last lines, whether and how to resume."""
    wait_for_credentials(work_uri)
    again = os.environ.get("MUST_RUN_AGAIN") or f"must-pipeline submit --again {run_id}"
    page = summarize(work_uri, run_id, again, settle_run(work_uri, run_id))
    print(page.to_text())
    write_page(page, run_summary)


def tell_news(work_uri: str, *, run_id: str, action: str) -> None:
    """Ends a run in which nothing is new, beside the group of stages that runs only if something is.

    Args:
        action: what the stage champion found."""
    print("nothing new" if action == NOTHING_NEW else "something new")
    if action == NOTHING_NEW:
        wait_for_credentials(work_uri)
        write_good_page(work_uri, run_id)


def list_failures(workflow: dict[str, Any]) -> dict[str, list[str]]:
    """By stage, the messages of its failed pods in an Argo workflow, the latest last; of a part by its number, as in
    label-2. Kubeflow's own step before a stage has a name such as train-driver."""
    messages = dict[str, list[str]]()
    for node in sorted(read_nodes(workflow), key=lambda node: node.get("startedAt") or ""):
        if node.get("type") == "Pod" and node.get("phase") in ("Failed", "Error"):
            messages.setdefault(parse_stage(node["name"]), []).append(node.get("message") or "no reason given")
    return messages


def read_nodes(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes, which Argo compresses in a large workflow."""
    status = workflow.get("status") or {}
    packed = status.get("compressedNodes")
    nodes = json.loads(gzip.decompress(base64.b64decode(packed))) if packed else status.get("nodes")
    return list((nodes or {}).values())


def parse_stage(node: str) -> str:
    """The stage: train for must-x(0).root(0).exit-handler-1(0).train(0).executor(0); label-2 for the second pod of a
    loop, whose step is named (1:1)."""
    parts = [re.sub(r"\([\d:]+\)$", "", part) for part in node.split(".")]
    name = next(part for part in reversed(parts) if part != "executor")
    stage, numbers = COMPONENTS[name].of or name if name in COMPONENTS else name, re.findall(r"\((\d+):", node)
    return f"{stage}-{int(numbers[-1]) + 1}" if numbers else stage


def parse_exit_code(message: str) -> int | None:
    """The exit code of a pod that ended by itself; None if it was killed, or unknown."""
    match = re.search(r"^main: Error \(exit code (\d+)\)", message)
    return int(match[1]) if match and match[1] not in ("137", "143") else None


def is_stopped(workflow: dict[str, Any]) -> bool:
    """Kubeflow Pipelines terminates a run by a deadline of 0 s, Argo by `shutdown`."""
    return workflow["spec"].get("activeDeadlineSeconds") == 0 or bool(workflow["spec"].get("shutdown"))


def settle_run(work_uri: str, run_id: str) -> list[str]:
    """Completes the notes of pods that could not write them; deletes the run's TrainJob. Returns sentences about it."""
    try:
        if (cluster := KubernetesApi.of_this_pod()) is None:
            return []
        reasons = list_failures(cluster.workflow(cluster.workflow_name() or "-") or {})
        sentences = []
        for note in read_notes(work_uri, run_id):
            stage = re.sub("-of-[0-9]+$", "", note.stage)  # of a part: `make_part_name`
            if note.state == "running" and stage in reasons:
                complete_note(note, reasons[stage][-1])
                write_note(work_uri, run_id, note)
            if job := note.facts.trainjob:
                ending = f"{job} {cluster.end_job(job, run_id)}"
                sentences += [ending] if note.state != "done" else []
        return sentences
    except (ValueError, OSError, KeyError, TypeError) as error:
        logger.warning(f"must: the status of this run's pods is not known: {format_error(error)}")
        return []


def complete_note(note: Note, reason: str) -> None:
    """Adds the cluster's reason for the end of the pod to a note in the state running. A pod that ended with
    its own exit code could not write its last note."""
    note.facts.pod = reason
    if parse_exit_code(reason) is not None and not note.signalled:
        note.state, note.code = "failed", BUG
        text = f"its pod ended by itself ({reason}) and could not write its last note; the pod's log says why"
        note.error = Failure("", text)
