"""Reads the state of a run's stages from an Argo workflow, as Kubernetes' API returns it."""

import base64
import gzip
import json
import re
from typing import Any

ENDED_BADLY = ("Failed", "Error")


def failures(workflow: dict[str, Any]) -> dict[str, list[str]]:
    """By stage, the messages of its failed pods from Argo and Kubernetes, the latest last.

    Kubeflow's own step before a stage has a name such as train-driver.
    """
    messages = dict[str, list[str]]()
    for node in sorted(read_nodes(workflow), key=lambda node: node.get("startedAt") or ""):
        if node.get("type") == "Pod" and node.get("phase") in ENDED_BADLY:
            messages.setdefault(parse_stage(node["name"]), []).append(node.get("message") or "no reason given")
    return messages


def read_nodes(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes, which Argo compresses in a large workflow."""
    status = workflow.get("status") or {}
    packed = status.get("compressedNodes")
    nodes = json.loads(gzip.decompress(base64.b64decode(packed))) if packed else status.get("nodes")
    return list((nodes or {}).values())


def parse_stage(node: str) -> str:
    """The stage: train for must-x(0).root(0).exit-handler-1(0).train(0).executor(0)."""
    parts = [re.sub(r"\([\d:]+\)$", "", part) for part in node.split(".")]
    return next(part for part in reversed(parts) if part != "executor")


def is_refused(message: str) -> bool:
    """Whether Kubernetes refuses the pod permanently; a pod over a quota only waits."""
    refused = re.search(r"is forbidden: |denied the request: ", message)
    return refused is not None and "exceeded quota" not in message


def parse_exit_code(message: str) -> int | None:
    """The exit code of a pod that ended by itself; None if it was killed, or unknown."""
    match = re.search(r"^main: Error \(exit code (\d+)\)", message)
    return int(match[1]) if match and match[1] not in ("137", "143") else None


def is_stopped(workflow: dict[str, Any]) -> bool:
    """Kubeflow Pipelines terminates a run by a deadline of 0 s, Argo by `shutdown`."""
    return workflow["spec"].get("activeDeadlineSeconds") == 0 or bool(workflow["spec"].get("shutdown"))
