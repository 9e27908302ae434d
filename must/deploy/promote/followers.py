"""Registries of others that get a copy, or a note, of what is promoted; ours decides, they follow."""

import base64
import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from must.base import storage
from must.base.errors import TransientError, UserError
from must.base.files import CARD_FILE, LONGEST_CARD, ONNX_FILE
from must.base.names import listed
from must.base.parameters import require
from must.base.storage import is_transient
from must.base.text import printable
from must.config import PromoteConfig
from must.config.trackers import require_packages
from must.method.train.trackers.base import reason
from must.method.train.trackers.mlflow import address, experiment, mlflow_client

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
    Raises ValueError: it cannot follow."""
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
    return MlflowRegistry(name)


def ask(register: str, name: str) -> None:
    """Whether that registry answers and lets us in.
    Raises ValueError: it does not, or the environment does not say where it is; TransientError where it may later."""
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
        raise UserError(f"register mlflow: {url} returns no MLflow JSON; check the address and the login")


def credentials() -> dict[str, str]:
    """As MLflow's own client takes them from the environment."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if user is None or password is None:
        return {}
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


ALIAS, TAG = "champion", "must.version"
MAY_PASS = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")  # MLflow's codes; no connection too


class MlflowRegistry:
    """The versions of one model in MLflow, the champion with the alias `champion`.

    A version there is a run's artifacts (the ONNX folder: model, labels, model card) with the metrics as the run's. It
    is made last, in one request, so that there is none without its files; its tag tells which of our versions it is, so
    that a repeated promotion finds it.
    """

    title = "MLflow"

    def __init__(self, name: str) -> None:
        self.name = name
        with translate_errors("nothing was promoted"):
            self.client = mlflow_client("--register mlflow")
            self.find("")  # a server that does not answer is known before anything is done

    def find(self, version: str) -> str | None:
        """MLflow's number of our version, if it is there."""
        for found in self.client.search_model_versions(f"name = '{self.name}'"):
            if found.tags.get(TAG) == version:
                return found.version
        return None

    def put(self, version: str, onnx: str, metrics: dict[str, float], tags: dict[str, str]) -> str:
        with translate_errors(f"{version} is the champion of the registry, but not in MLflow; run the same again"):
            number = self.find(version) or self.add(version, onnx, metrics, tags)
            self.client.set_registered_model_alias(self.name, ALIAS, number)
        return called(version, number)

    def move(self, version: str) -> str | None:
        with translate_errors(f"{version} is the champion of the registry again; in MLflow the alias was not moved"):
            number = self.find(version)
            if number:
                self.client.set_registered_model_alias(self.name, ALIAS, number)
        return called(version, number) if number else None

    def add(self, version: str, onnx: str, metrics: dict[str, float], tags: dict[str, str]) -> str:
        from mlflow.entities import Metric

        parent = os.environ.get("MLFLOW_RUN_ID")
        of_run = {TAG: version, **({"mlflow.parentRunId": parent} if parent else {})}
        run = self.client.create_run(experiment(self.client), run_name=f"{self.name} {version}", tags=of_run)
        made_name = False
        try:
            now = int(time.time() * 1000)
            self.client.log_batch(run.info.run_id, metrics=[Metric(name, x, now, 0) for name, x in metrics.items()])
            with tempfile.TemporaryDirectory() as folder:
                card = self.stage(onnx, Path(folder), run.info.run_id)
                self.client.log_artifacts(run.info.run_id, folder, "model")
            made_name = self.make_name()
            number = self.client.create_model_version(
                self.name, f"{run.info.artifact_uri}/model", run.info.run_id, {TAG: version, **tags},
                description=card[:LONGEST_CARD],
            ).version  # fmt: skip
        except BaseException:
            with suppress(Exception):  # what is left of it is no version, only clutter
                if self.find(version) is None:  # else only the answer was lost
                    self.client.delete_run(run.info.run_id)
                    if made_name:
                        self.client.delete_registered_model(self.name)
            raise
        self.client.set_terminated(run.info.run_id)
        return number

    def make_name(self) -> bool:
        """Whether the model's name was not there before."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return False
        return True

    def stage(self, onnx: str, folder: Path, run_id: str) -> str:
        """Copies the ONNX folder, and describes it as MLflow does (MLmodel); returns the model card."""
        from mlflow.models import Model

        for name in listed(onnx):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            storage.download(storage.join(onnx, name), folder / name)
        model = Model(artifact_path="model", run_id=run_id)
        model.add_flavor("onnx", data=ONNX_FILE, providers=["CPUExecutionProvider"])
        model.save(str(folder / "MLmodel"))
        return (folder / CARD_FILE).read_text(encoding="utf-8") if (folder / CARD_FILE).exists() else ""


def called(version: str, number: str) -> str:
    return f"{version} (version {number} there)"


@contextmanager
def translate_errors(state: str) -> Iterator[None]:
    """MLflow's errors become one line, which also says how far it got."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:  # uploads raise errors of requests, which are OSErrors
        text = f"--register mlflow: {reason(error)}; {state}"
        if isinstance(error, MlflowException) and error.error_code not in MAY_PASS:
            raise UserError(text) from None
        raise TransientError(text) from None
