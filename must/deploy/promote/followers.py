"""Registries of others that get a copy, or a note, of what is promoted; ours decides, they follow."""

import base64
import os
import urllib.error
import urllib.request
from typing import Protocol

from must.base import storage
from must.base.errors import TransientError, UserError
from must.base.files import ONNX_FILE
from must.base.parameters import require
from must.base.storage import is_transient
from must.base.text import printable
from must.config import PromoteConfig
from must.config.trackers import require_packages

SEARCH = "/api/2.0/mlflow/registered-models/search?max_results=1"
TIMEOUT = 30  # seconds


class Follower(Protocol):
    """One model there. Its methods raise ValueError; TransientError where the same may work later."""

    title: str  # the registry's, for what is printed
    name: str  # the model's there

    def put(self, version: str, onnx: str, metrics: dict[str, float], tags: dict[str, str]) -> str:
        """Makes our version unless it is there, and the champion; returns what it is called there.

        Args:
            onnx: the folder written by `must export`.
            tags: of the version, besides its name here; `must.uri` is its place in our registry.
        """

    def move(self, version: str) -> str | None:
        """Makes a version the champion that is there; None if it is not, and the champion stays."""


def follower_of(config: PromoteConfig) -> Follower | None:
    """The registry that follows, if one is asked for. It is asked something, so that one that does not answer is known
    before anything is promoted.

    Raises:
        ValueError: it cannot follow.
    """
    if config.register == "none":
        return None
    if config.register == "mlflow":
        require_packages(["mlflow"], "--register")
    if config.onnx:
        there = storage.exists(storage.join(config.onnx, ONNX_FILE))
        require(there, f"--onnx {config.onnx}: no {ONNX_FILE} there, which --register needs")
    name = config.register_name or config.name
    if config.register == "kubeflow":
        from must.deploy.promote.kubeflow_registry import KubeflowRegistry

        return KubeflowRegistry(name)
    from must.deploy.promote.mlflow_registry import MlflowRegistry

    return MlflowRegistry(name)


def ask(register: str, name: str) -> None:
    """Whether that registry answers and lets us in.

    Raises:
        ValueError: it does not, or the environment does not say where it is; TransientError where it may later.
    """
    if register == "kubeflow":
        from must.deploy.promote.kubeflow_registry import KubeflowRegistry, address

        address("register kubeflow")  # named as the pipeline's parameter, before it is by its flag
        KubeflowRegistry(name)
    elif register == "mlflow":
        ask_server()


def ask_server() -> None:
    """Does nothing where MLFLOW_TRACKING_URI is no http(s) address: a folder, or a database.

    Raises:
        ValueError: it refuses, is no MLflow, or the environment does not say where it is; TransientError if it does
            not answer.
    """
    from must.method.train.trackers.mlflow import address

    tracking = address("register mlflow")
    url = os.environ.get("MLFLOW_REGISTRY_URI") or tracking
    if not url.startswith(("http://", "https://")):
        return
    request = urllib.request.Request(url.rstrip("/") + SEARCH, headers=credentials())
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            kind = answer.headers.get_content_type()
    except urllib.error.HTTPError as error:
        with error:
            line = f"register mlflow: {url} answers {error.code}"
        raise (TransientError if is_transient(error.code) else UserError)(line) from None
    except OSError as error:
        raise TransientError(f"register mlflow: {url} does not answer ({printable(error, 200)})") from None
    if kind != "application/json":
        raise UserError(f"register mlflow: {url} answers something else than MLflow's JSON: a login page?")


def credentials() -> dict[str, str]:
    """As MLflow's own client takes them from the environment."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if user is None or password is None:
        return {}
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
