"""A run's workflow in the cluster: Kubeflow Pipelines reports neither its deletion nor why its pods fail."""

import os
from typing import Any

WATCH_TIMEOUT = 10  # seconds


class Workflows:
    """Reads workflows with kubectl's configuration or the pod's service account, if either has the permission."""

    def __init__(self, namespace: str, run_id: str) -> None:
        self.namespace, self.run_id = namespace, run_id
        self.existed = False
        self.latest: dict[str, Any] = {}  # the workflow as it was read last
        self.api = connect()

    def is_gone(self) -> bool:
        """Whether it was deleted. False if it never existed: the configuration may be of another cluster."""
        exists = self.exists()
        self.existed = self.existed or bool(exists)
        return self.existed and exists is False

    def exists(self) -> bool | None:
        """Whether the workflow exists; None: unknown."""
        if self.api is None:
            return None
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            label = f"pipeline/runid={self.run_id}"
            response = self.api.list_namespaced_custom_object(
                "argoproj.io",
                "v1alpha1",
                self.namespace,
                "workflows",
                label_selector=label,
                _request_timeout=WATCH_TIMEOUT,
            )
            self.latest = next(iter(response["items"]), self.latest)
            return bool(response["items"])
        except (ApiException, HTTPError, OSError):
            return None


def connect() -> Any:
    """The Kubernetes API, or None: no configuration, or no client (kfp installs it, but submitting needs no kfp)."""
    try:
        from kubernetes import client, config
    except ModuleNotFoundError:
        return None
    try:
        config.load_incluster_config()
    except config.ConfigException:
        try:
            config.load_kube_config(os.environ.get("KUBECONFIG"))
        except (config.ConfigException, OSError, TypeError):
            return None
    return client.CustomObjectsApi()
