"""What an Argo workflow says of a run's stages; the workflow is the object as Kubernetes' API gives it."""

import base64
import gzip
import json
import re
from typing import Any

ENDED_BADLY = ("Failed", "Error")


def failures(workflow: dict[str, Any]) -> dict[str, list[str]]:
    """By stage, why its pods failed, in Argo's and Kubernetes' own words; the last one last.

    A step of Kubeflow's own before a stage has a name of its own: train-driver.
    """
    found = dict[str, list[str]]()
    for node in sorted(nodes_of(workflow), key=lambda node: node.get("startedAt") or ""):
        if node.get("type") == "Pod" and node.get("phase") in ENDED_BADLY:
            found.setdefault(stage_of(node["name"]), []).append(node.get("message") or "no reason given")
    return found


def nodes_of(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    """Argo packs those of a large workflow."""
    status = workflow.get("status") or {}
    packed = status.get("compressedNodes")
    nodes = json.loads(gzip.decompress(base64.b64decode(packed))) if packed else status.get("nodes")
    return list((nodes or {}).values())


def stage_of(node: str) -> str:
    """Of must-x(0).root(0).exit-handler-1(0).train(0).executor(0): train."""
    parts = [re.sub(r"\([\d:]+\)$", "", part) for part in node.split(".")]
    return next(part for part in reversed(parts) if part != "executor")


def is_refused(message: str) -> bool:
    """Whether Kubernetes will not have the pod, however often it is asked; one over a quota waits."""
    refused = re.search(r"is forbidden: |denied the request: ", message)
    return refused is not None and "exceeded quota" not in message


def own_code(message: str) -> int | None:
    """The exit code that a pod ended with by itself; None: something else ended it, or nobody knows."""
    found = re.search(r"^main: Error \(exit code (\d+)\)", message)
    return int(found[1]) if found and found[1] not in ("137", "143") else None


def is_stopped(workflow: dict[str, Any]) -> bool:
    """Kubeflow Pipelines terminates a run by a deadline of 0 s, Argo by `shutdown`."""
    return workflow["spec"].get("activeDeadlineSeconds") == 0 or bool(workflow["spec"].get("shutdown"))
