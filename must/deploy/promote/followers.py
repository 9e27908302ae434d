"""Registries of others that get a copy, or a note, of what is promoted; ours decides, they follow."""

from __future__ import annotations

from typing import Protocol

from must.base import storage
from must.base.files import ONNX_FILE
from must.base.parameters import require
from must.config import PromoteConfig
from must.config.trackers import require_packages


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
    check_address(register)
    if register == "kubeflow":
        from must.deploy.promote.kubeflow_registry import KubeflowRegistry

        KubeflowRegistry(name)
    elif register == "mlflow":
        from must.deploy.promote.mlflow_server import ask_server

        ask_server()


def check_address(register: str) -> None:
    """Raises ValueError: the environment does not say where that registry is."""
    if register == "kubeflow":
        from must.deploy.promote.model_registry import address

        address("register kubeflow")
    elif register == "mlflow":
        from must.method.train.trackers.mlflow import address as mlflow_address

        mlflow_address("register mlflow")
