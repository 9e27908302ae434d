"""Calls of Kubernetes' API for a TrainJob: create, read and delete it, and read the state of its pods.

The SDK builds and submits the object. Its read functions omit annotations, owners and the reasons of conditions, and
fail on unknown devices; so this module reads and deletes with the API itself.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any

from kubeflow.trainer import TrainerClient
from kubernetes import watch
from kubernetes.client import ApiException, V1DeleteOptions, V1Preconditions
from urllib3.exceptions import HTTPError

from must_components.argo import is_stopped
from must_components.train_job.manifest import MODEL, NODE, RUN, RUN_NAME, Request

TRAINER_API = ("trainer.kubeflow.org", "v1alpha1")
JOB_SET = ("jobset.x-k8s.io", "v1alpha2")
WORKFLOW = ("argoproj.io", "v1alpha1")
REQUEST_TIMEOUT = (5, 30)  # seconds for connecting, and for a response
NO_ANSWER = (HTTPError, OSError)


class Jobs:
    """TrainJobs of the launcher's namespace. Every method may raise ApiException, or one of NO_ANSWER."""

    def __init__(self) -> None:
        self.client = TrainerClient()
        backend: Any = self.client.backend
        self.custom, self.core, self.namespace = backend.custom_api, backend.core_api, backend.namespace

    def create(self, request: Request) -> None:
        """Raises RuntimeError with the API server's error as its cause."""
        self.client.train(runtime=request.runtime, trainer=request.trainer, options=request.options)

    def get(self, name: str) -> dict[str, Any] | None:
        """The TrainJob, or None if there is none."""
        return self.read(TRAINER_API, "trainjobs", name)

    def delete(self, job: dict[str, Any]) -> None:
        """Deletes this job, not a newer one of the same name. It exists until its JobSet and all its pods are deleted.

        A running job is suspended first, which ends its pods: Trainer 2.3 creates the JobSet again while it is being
        deleted, but starts no pods for a suspended job.

        The SDK deletes in the background: the job would be gone at once, and a new job of the same name would find the
        old JobSet. Then Trainer creates no second one, and reports the old one's failure for the new job.
        """
        options = V1DeleteOptions(
            propagation_policy="Foreground", preconditions=V1Preconditions(uid=job["metadata"]["uid"])
        )
        name = job["metadata"]["name"]
        self.suspend(job)
        try:
            self.custom.delete_namespaced_custom_object(
                *TRAINER_API, self.namespace, "trainjobs", name, body=options, _request_timeout=REQUEST_TIMEOUT
            )
        except ApiException as error:
            if error.status not in (404, 409):  # it was deleted, or replaced by another one
                raise

    def suspend(self, job: dict[str, Any]) -> None:
        """Suspends a job that is not over. Without the permission (an older role) it does nothing."""
        conditions = job.get("status", {}).get("conditions", [])
        over = any(each["status"] == "True" and each["type"] in ("Complete", "Failed") for each in conditions)
        if over or job["spec"].get("suspend") or "deletionTimestamp" in job["metadata"]:
            return
        path = (*TRAINER_API, self.namespace, "trainjobs", job["metadata"]["name"])
        patch = {"metadata": {"uid": job["metadata"]["uid"]}, "spec": {"suspend": True}}
        with suppress(ApiException):
            self.custom.patch_namespaced_custom_object(*path, patch, _request_timeout=REQUEST_TIMEOUT)

    def mark(self, job: dict[str, Any], run: str, name: str, model: str) -> None:
        """Labels the job with the id and name of the run that waits for it, and with its model. Without the permission
        it does nothing."""
        path = (*TRAINER_API, self.namespace, "trainjobs", job["metadata"]["name"])
        labels = {RUN: run, MODEL: model.rstrip("-._") or None}  # Kubernetes' rule for a label's end
        patch = {"uid": job["metadata"]["uid"], "labels": labels, "annotations": {RUN_NAME: name}}
        with suppress(ApiException):
            self.custom.patch_namespaced_custom_object(*path, {"metadata": patch}, _request_timeout=REQUEST_TIMEOUT)

    def outcome(self, job: dict[str, Any]) -> tuple[str, str]:
        """Complete, Failed, Suspended or '' while it runs, and why.

        Ignores a condition that was copied from the JobSet of an earlier job of the same name.
        """
        conditions = {c["type"]: c for c in job.get("status", {}).get("conditions", []) if c["status"] == "True"}
        for kind in ("Complete", "Failed"):
            if kind in conditions and self.is_condition_of(job, conditions[kind]):
                return kind, f"{conditions[kind].get('reason', '')}: {conditions[kind].get('message', '')}"
        return ("Suspended", "") if job["spec"].get("suspend") else ("", "")

    def is_condition_of(self, job: dict[str, Any], condition: dict[str, Any]) -> bool:
        job_set = self.read(JOB_SET, "jobsets", job["metadata"]["name"])
        if job_set is None:  # deleted at the deadline, or it was the old one's
            return datetime.fromisoformat(condition["lastTransitionTime"]) >= datetime.fromisoformat(
                job["metadata"]["creationTimestamp"]
            )
        owners = [owner["uid"] for owner in job_set["metadata"].get("ownerReferences", [])]
        return job["metadata"]["uid"] in owners

    def pods(self, name: str) -> list[Any]:
        """The nodes' pods, the newest first."""
        selector = f"jobset.sigs.k8s.io/jobset-name={name},jobset.sigs.k8s.io/replicatedjob-name={NODE}"
        list_pods = self.core.list_namespaced_pod
        pods = list_pods(self.namespace, label_selector=selector, _request_timeout=REQUEST_TIMEOUT).items
        return sorted(pods, key=lambda pod: pod.metadata.creation_timestamp, reverse=True)

    def log(self, pod: str) -> list[str]:
        text = self.core.read_namespaced_pod_log(pod, self.namespace, container=NODE, _request_timeout=REQUEST_TIMEOUT)
        return str(text).splitlines()

    def follow(self, pod: str) -> Iterator[str]:
        """The log from its start, line by line, until the container ends or the connection does."""
        read = self.core.read_namespaced_pod_log
        yield from watch.Watch().stream(read, name=pod, namespace=self.namespace, container=NODE, follow=True)

    def events(self, name: str) -> list[str]:
        """Kubernetes' events about the job, its queue, its JobSet and its pods, the oldest first."""
        events = [
            (event.last_timestamp or event.first_timestamp or event.event_time, event.involved_object, event)
            for event in self.core.list_namespaced_event(self.namespace, _request_timeout=REQUEST_TIMEOUT).items
        ]
        matches = [item for item in events if item[0] and name in item[1].name]
        matches.sort(key=lambda item: item[0])
        return [f"{about.kind} {about.name}: {event.reason}: {event.message}" for _, about, event in matches]

    def workflow(self) -> str:
        """The Argo workflow that this pod belongs to, or '' outside one."""
        pod = os.environ.get("KFP_POD_NAME", "")
        if not pod:
            return ""
        metadata = self.core.read_namespaced_pod(pod, self.namespace, _request_timeout=REQUEST_TIMEOUT).metadata
        return (metadata.labels or {}).get("workflows.argoproj.io/workflow", "")

    def run_name(self, workflow: str) -> str:
        content = self.read(WORKFLOW, "workflows", workflow) or {"metadata": {}}
        return str((content["metadata"].get("annotations") or {}).get("pipelines.kubeflow.org/run_name", ""))

    def is_over(self, workflow: str) -> bool:
        """Whether the run is being stopped or was deleted, as opposed to this pod alone."""
        content = self.read(WORKFLOW, "workflows", workflow)
        return content is None or is_stopped(content)

    def read(self, group: tuple[str, str], plural: str, name: str) -> dict[str, Any] | None:
        read = self.custom.get_namespaced_custom_object
        try:
            content: dict[str, Any] = read(*group, self.namespace, plural, name, _request_timeout=REQUEST_TIMEOUT)
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return content
