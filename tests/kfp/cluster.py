"""The pods behind a run, through Kubernetes' own API, where this machine may use it."""

from __future__ import annotations

import re
from typing import Any

from must_pipeline.server.api import connect

TRAINING = re.compile(r"\.train(-job)?(\(\d+\))?\.executor")  # in the name of the workflow's node
KILL = """
import os, signal
for number in filter(str.isdigit, os.listdir("/proc")):
    try:
        with open(f"/proc/{number}/cmdline", "rb") as file:
            if b"-m\\0must.runtime.supervise" in file.read():
                os.kill(int(number), signal.SIGKILL)
                print("killed", number)
    except OSError:  # it has just ended
        pass
"""
RETRIED, RACE, UNKNOWN = "repeated", "mostly repeated", "not to be seen from here"
HOPELESS = {"ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError"}  # why a container waits
TRAINER = ("trainer.kubeflow.org", "v1alpha1")
SOON = {"_request_timeout": 10}


class Pods:
    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.core = self.extensions = None
        if (api := connect()) is not None:
            from kubernetes.client import CoreV1Api

            self.core, self.extensions = CoreV1Api(), api

    def unusable(self) -> str:
        """Why pods cannot be reached; '' if they can."""
        if self.core is None:
            return "no access to Kubernetes from here (kubectl's configuration)"
        try:
            self.core.list_namespaced_pod(self.namespace, limit=1, **SOON)
        except Exception as error:  # whatever keeps it from us
            return f"pods of {self.namespace} cannot be listed ({type(error).__name__})"
        return ""

    def no_trainer(self, runtime: str) -> str:
        """Why there can be no TrainJob; '' if there can."""
        if self.extensions is None:
            return "no access to Kubernetes from here, to look for Kubeflow Trainer"
        try:
            self.extensions.get_api_resources(*TRAINER, **SOON)
        except Exception as error:  # not there, or not for us
            return f"no Kubeflow Trainer to be seen ({type(error).__name__})"
        missing = f"no runtime {runtime} in {self.namespace}: deploy/training-runtime.yaml is not applied"
        return missing if self.is_missing(runtime) else ""

    def is_missing(self, runtime: str) -> bool:
        """Of the namespace and of the cluster. Not where it cannot be looked at."""
        from kubernetes.client import ApiException

        get = self.extensions
        try:
            get.get_namespaced_custom_object(*TRAINER, self.namespace, "trainingruntimes", runtime, **SOON)
        except ApiException as error:
            if error.status != 404:
                return False
            try:
                get.get_cluster_custom_object(*TRAINER, "clustertrainingruntimes", runtime, **SOON)
            except ApiException as error:
                return error.status in (403, 404)  # the pods' account would have to be allowed to read it, too
        return False

    def cannot_start(self, run_id: str) -> str:
        """Why a pod of the run will never start, as far as it can be seen: its image, a volume or a Secret."""
        try:
            pods = self.of(run_id) if self.core is not None else []
        except Exception:  # no right to look, or no answer now
            return ""
        for pod in pods:
            for status in pod.status.container_statuses or []:
                waiting = status.state and status.state.waiting
                if waiting and waiting.reason in HOPELESS:
                    return f"{pod.metadata.name}: {waiting.reason}: {' '.join((waiting.message or '').split())[:300]}"
        return ""

    def of(self, run_id: str) -> list[Any]:
        selector = f"pipeline/runid={run_id}"
        return list(self.core.list_namespaced_pod(self.namespace, label_selector=selector, **SOON).items)

    def training(self, run_id: str) -> str:
        """The name of the run's training pod."""
        pods = self.of(run_id)
        for pod in pods:
            node = (pod.metadata.annotations or {}).get("workflows.argoproj.io/node-name", "")
            if TRAINING.search(node) and pod.status.phase == "Running":
                return pod.metadata.name
        raise ValueError(f"the run {run_id} has no training pod among {[pod.metadata.name for pod in pods]}")

    def retries(self) -> str:
        """What Argo's setting promises for a pod that vanishes: RETRIED (deploy/argo-retries.yaml), a RACE (Pipelines'
        own: only one that Argo sees gone before it sees it failed), or UNKNOWN, where it cannot be read."""
        try:
            settings = self.core.read_namespaced_config_map("workflow-controller-configmap", "kubeflow", **SOON).data
        except Exception:  # no right to look, or installed elsewhere
            return UNKNOWN
        text = (settings or {}).get("workflowDefaults", "")
        return RETRIED if "lastRetry.message matches" in text and "evict" in text else RACE

    def evict(self, run_id: str) -> None:
        """Through Kubernetes' Eviction API, as draining a node does. The kubelet's own cannot be asked for."""
        from kubernetes.client import V1Eviction, V1ObjectMeta

        name = self.training(run_id)
        body = V1Eviction(metadata=V1ObjectMeta(name=name, namespace=self.namespace))
        self.core.create_namespaced_pod_eviction(name, self.namespace, body)

    def delete(self, run_id: str) -> None:
        self.core.delete_namespaced_pod(self.training(run_id), self.namespace)

    def kill_worker(self, run_id: str) -> None:
        """SIGKILL to the process below the one that supervises it."""
        from kubernetes.stream import stream

        pod, call = self.training(run_id), self.core.connect_get_namespaced_pod_exec
        more: Any = {"container": "main", "command": ["python3", "-c", KILL], "stdout": True, "stderr": True}
        said = stream(call, pod, self.namespace, **more)
        if "killed" not in said:
            raise ValueError(f"no process of the training found in {pod}: {said[:200]}")
