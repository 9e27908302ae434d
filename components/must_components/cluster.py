"""Kubernetes' API with a pod's service account; standard library only, because not every image has a client."""

from __future__ import annotations

import json
import logging
import os
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from must.base.errors import TransientError, UserError
from must.base.parameters import require
from must.base.storage import is_transient, object_or_none
from must.base.text import one_line
from must.runtime.places import WorkUri
from must_components.serving.manifest import (
    GROUP,
    KIND,
    PLURAL,
    VERSION,
    inference_service,
    keep_size,
    require_reachable,
)

logger = logging.getLogger(__name__)

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # a pod's token, certificate and namespace
TIMEOUT = 30  # seconds
TRAINER = "trainer.kubeflow.org"


class Cluster:
    def __init__(self, url: str, account: Path) -> None:
        self.url, self.account = url, account
        self.namespace = (account / "namespace").read_text().strip()

    @classmethod
    def of_this_pod(cls) -> Cluster | None:
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host or not (ACCOUNT / "token").is_file():
            return None
        return cls(f"https://{f'[{host}]' if ':' in host else host}:{port}", ACCOUNT)

    def request(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> tuple[int, Any]:
        """(HTTP status, body). Raises TransientError: no response, or an error of the server."""
        headers = {"Authorization": f"Bearer {(self.account / 'token').read_text().strip()}", "Content-Type": kind}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        trusted = ssl.create_default_context(cafile=self.account / "ca.crt") if self.url.startswith("https") else None
        no_proxy = urllib.request.ProxyHandler({})  # urllib does not support address ranges in $NO_PROXY
        opener = urllib.request.build_opener(no_proxy, urllib.request.HTTPSHandler(context=trusted))
        try:
            with opener.open(request, timeout=TIMEOUT) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(100_000)
            if is_transient(error.code):
                raise TransientError(f"the API server of Kubernetes answers {error.code}") from None
            return error.code, object_or_none(text, dict) or {}
        except OSError as error:
            raise TransientError(f"the API server of Kubernetes does not answer ({type(error).__name__})") from None

    @classmethod
    def to_serve(cls) -> Cluster:
        """The cluster of this pod. Raises ValueError: this process is not in a pod."""
        if (cluster := cls.of_this_pod()) is None:
            raise UserError("serve: apply works in a pod of the cluster only; here, use `write`")
        return cluster

    def apply(self, manifest: dict[str, Any], dry: bool = False) -> str:
        """Server-side apply; a running server's replicas and resources are kept (see keep_size). Returns the namespace.

        `dry`: only check the permissions, KServe, and its webhooks.
        Raises ValueError: no permission, or the cluster has no InferenceService; TransientError: see `request`.
        """
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{self.namespace}/{PLURAL}/{manifest['metadata']['name']}"
        status, response = self.request("GET", path)
        if status == 200 and (sizes := keep_size(manifest, response)) and not dry:
            logger.warning(f"serve: the cluster's values are kept, not those of cluster.yaml: {sizes}")
        if status == 403 and not dry:
            logger.warning(
                "serve: no right to read the server, so replicas and resources are those of cluster.yaml; "
                "apply deploy/serving.yaml"
            )
        patch_path = f"{path}?fieldManager=must&force=true{'&dryRun=All' * dry}"
        status, response = self.request("PATCH", patch_path, manifest, "application/apply-patch+yaml")
        message = one_line(response.get("message") or "no reason")[:300]
        if status == 403:
            raise UserError(
                f"serve: the service account may not apply an {KIND} in {self.namespace}; apply "
                f"deploy/serving.yaml or use `write` ({message})"
            )
        require(status != 404, f"serve: this cluster has no {KIND}; install KServe")
        require(status < 400, f"serve: the API server refuses the {KIND}: {status} {message}")
        return self.namespace

    def check_trainer(self, runtime: str) -> None:
        """Raises ValueError: the training runtime does not exist, or no permission to create TrainJobs."""
        path = f"/apis/{TRAINER}/v1alpha1/namespaces/{self.namespace}/trainingruntimes/{runtime}"
        status, _ = self.request("GET", path)
        if status == 404:
            status, _ = self.request("GET", f"/apis/{TRAINER}/v1alpha1/clustertrainingruntimes/{runtime}")
        require(
            status in (200, 401, 403),
            f"train: there is no training runtime {runtime} in {self.namespace}: is Kubeflow Trainer 2 installed, and "
            "deploy/training-runtime.yaml applied?",
        )
        attributes = {"namespace": self.namespace, "group": TRAINER, "resource": "trainjobs", "verb": "create"}
        review = {
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }  # fmt: skip
        review_status, response = self.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        allowed = review_status >= 400 or response.get("status", {}).get("allowed")  # an error decides nothing
        require(
            status == 200 and bool(allowed),
            f"train: the service account may not use TrainJobs in {self.namespace}; give it the role in "
            "deploy/trainjobs.yaml",
        )


def check_inputs(work_uri: str, *, parameters: dict[str, Any], server: dict[str, Any], runtime: str) -> str:
    """The stage inputs: must.runtime.stages.inputs, and whether the cluster has what later stages need.

    `runtime` is empty if training is not a TrainJob.
    Raises ValueError: the cluster would refuse a request of a later stage; TransientError if it does not answer.
    """
    from must.runtime import stages  # not in the image of the launcher

    result = stages.inputs(work_uri, parameters=parameters)
    registry = WorkUri(work_uri).registry(parameters.get("registry_uri", ""))
    if parameters.get("serve") == "apply":
        require_reachable(registry, server)
        Cluster.to_serve().apply(inference_service(registry, parameters["model_name"], server), dry=True)
    if runtime and (cluster := Cluster.of_this_pod()) is not None:
        cluster.check_trainer(runtime)
    return result
