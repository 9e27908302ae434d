"""A run's workflow in the cluster: Kubeflow Pipelines does not notice its deletion, nor tell why its pods fail."""

import os
from typing import Any

WATCH_TIMEOUT = 10  # seconds


class Workflows:
    """Looks through kubectl's own configuration, or a pod's account, where there is one that may read workflows."""

    def __init__(self, namespace: str, run_id: str) -> None:
        self.namespace, self.run_id = namespace, run_id
        self.seen = False
        self.latest: dict[str, Any] = {}  # the workflow as it was seen last
        self.api = connect()

    def is_gone(self) -> bool:
        """Whether it was there and is no more. Not if it was never seen: the configuration may be another cluster's."""
        found = self.exists()
        self.seen = self.seen or bool(found)
        return self.seen and found is False

    def exists(self) -> bool | None:
        """Whether the workflow is there; None: unknown."""
        if self.api is None:
            return None
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            label = f"pipeline/runid={self.run_id}"
            found = self.api.list_namespaced_custom_object(
                "argoproj.io",
                "v1alpha1",
                self.namespace,
                "workflows",
                label_selector=label,
                _request_timeout=WATCH_TIMEOUT,
            )
            self.latest = next(iter(found["items"]), self.latest)
            return bool(found["items"])
        except (ApiException, HTTPError, OSError):
            return None


def connect() -> Any:
    """The Kubernetes API, or None, also where its client is not installed: kfp brings it, submitting needs no kfp."""
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
