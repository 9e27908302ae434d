"""External registries (MLflow, Kubeflow) that get a copy or a record of each promoted version."""

import base64
import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from must.base import storage
from must.base.errors import TransientError, UserError
from must.base.files import CARD_FILE, LONGEST_CARD, ONNX_FILE
from must.base.names import listed
from must.base.parameters import require
from must.base.storage import is_transient
from must.base.text import one_line, printable
from must.config import PromoteConfig

if TYPE_CHECKING:
    from must.deploy.promote.kubeflow_registry import KubeflowRegistry

SEARCH = "/api/2.0/mlflow/registered-models/search?max_results=1"
TIMEOUT = 30  # seconds
DEFAULTS = {  # of MLflow's environment variables
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's own default takes minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def reason(error: Exception) -> str:
    """The message of an error of a tracker's package, in one line of at most 300 characters."""
    return printable(one_line(error), 300)


def address(flag: str) -> str:
    """MLFLOW_TRACKING_URI. Raises ValueError: it is not set; the message begins with `flag`."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    require(bool(uri), f"{flag}: set MLFLOW_TRACKING_URI to the server's address, such as http://host:5000")
    return uri


def mlflow_client(flag: str) -> Any:
    """An MlflowClient of the server at MLFLOW_TRACKING_URI, without any request yet.
    Raises ValueError: as `address` does."""
    uri = address(flag)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(uri)


def experiment(client: Any) -> str:
    """The id of the experiment that MLflow's variables name, created if missing; else of the default one."""
    if experiment_id := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return experiment_id
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "")
    if not name:
        return "0"
    existing = client.get_experiment_by_name(name)
    return existing.experiment_id if existing else client.create_experiment(name)


ExternalRegistry = Union["MlflowRegistry", "KubeflowRegistry"]


def external_registry_of(config: PromoteConfig) -> ExternalRegistry | None:
    """The external registry of --register, or None. Sends it a request, so that an unreachable registry fails before
    anything is promoted.
    Raises ValueError: the registry cannot be used."""
    if config.register == "none":
        return None
    if config.register == "mlflow":
        text = "--register mlflow: the package mlflow is not installed here; install it with: "
        require(find_spec("mlflow") is not None, text + "pip install 'must-clip[mlflow]'")
    if config.onnx:
        exists = storage.exists(storage.join(config.onnx, ONNX_FILE))
        require(exists, f"--onnx {config.onnx}: no {ONNX_FILE} there, which --register needs")
    name = config.register_name or config.name
    if config.register == "kubeflow":
        from must.deploy.promote.kubeflow_registry import KubeflowRegistry

        return KubeflowRegistry(name)
    return MlflowRegistry(name)


def check_access(register: str, name: str) -> None:
    """Raises ValueError: the registry refuses access, or the environment has no address; TransientError where a retry
    may succeed."""
    if register == "kubeflow":
        from must.deploy.promote.kubeflow_registry import KubeflowRegistry, address

        address("register kubeflow")  # first: its error names the pipeline's parameter, not the flag
        KubeflowRegistry(name)
    elif register == "mlflow":
        check_mlflow()


def check_mlflow() -> None:
    """Does nothing where MLFLOW_TRACKING_URI is a folder or a database, not an http(s) address.
    Raises ValueError: it refuses access, is not MLflow, or the environment has no address; TransientError if it does
    not respond."""
    tracking = address("register mlflow")
    url = os.environ.get("MLFLOW_REGISTRY_URI") or tracking
    if not url.startswith(("http://", "https://")):
        return
    request = urllib.request.Request(url.rstrip("/") + SEARCH, headers=credentials())
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            media_type = response.headers.get_content_type()
    except urllib.error.HTTPError as error:
        with error:
            line = f"register mlflow: {url} answers {error.code}"
        raise (TransientError if is_transient(error.code) else UserError)(line) from None
    except OSError as error:
        raise TransientError(f"register mlflow: {url} does not answer ({printable(error, 200)})") from None
    if media_type != "application/json":
        raise UserError(f"register mlflow: {url} returns no MLflow JSON; check the address and the login")


def credentials() -> dict[str, str]:
    """From the environment variables of MLflow's client."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if user is None or password is None:
        return {}
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


ALIAS, TAG = "champion", "must.version"
# MLflow's error codes after which a retry may succeed; INTERNAL_ERROR also stands for a failed connection.
TRANSIENT_CODES = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


class MlflowRegistry:
    """The versions of one model in MLflow. The champion has the alias `champion`. The methods `put` and `move` raise
    ValueError; TransientError where a retry may succeed.

    A version in MLflow consists of a run's artifacts (the ONNX folder: model, labels, model card) and its metrics. It
    is created last, in one request, so that no version lacks its files. Its tag has the name of the version in MUST's
    registry, by which a repeated promotion finds it.
    """

    title = "MLflow"

    def __init__(self, name: str) -> None:
        self.name = name
        with mlflow_errors("nothing was promoted"):
            self.client = mlflow_client("--register mlflow")
            self.find("")  # fails at once if the server does not respond

    def find(self, version: str) -> str | None:
        """MLflow's number of the version, or None."""
        versions = self.client.search_model_versions(f"name = '{self.name}'")
        return next((entry.version for entry in versions if entry.tags.get(TAG) == version), None)

    def put(self, version: str, onnx: str, metrics: dict[str, float], tags: dict[str, str]) -> str:
        """Creates the version of the folder `onnx` unless it exists, and makes it the champion; returns its name in
        that registry. `tags`: of the version; `must.uri` is its URI in MUST's registry."""
        with mlflow_errors(f"{version} is the champion of the registry, but not in MLflow; run the same again"):
            number = self.find(version) or self.add(version, onnx, metrics, tags)
            self.client.set_registered_model_alias(self.name, ALIAS, number)
        return with_number(version, number)

    def move(self, version: str) -> str | None:
        """Makes an existing version the champion; None if it does not exist: then the champion is not changed."""
        with mlflow_errors(f"{version} is the champion of the registry again; in MLflow the alias was not moved"):
            number = self.find(version)
            if number:
                self.client.set_registered_model_alias(self.name, ALIAS, number)
        return with_number(version, number) if number else None

    def add(self, version: str, onnx: str, metrics: dict[str, float], tags: dict[str, str]) -> str:
        from mlflow.entities import Metric

        parent = os.environ.get("MLFLOW_RUN_ID")
        run_tags = {TAG: version, **({"mlflow.parentRunId": parent} if parent else {})}
        run = self.client.create_run(experiment(self.client), run_name=f"{self.name} {version}", tags=run_tags)
        is_new_model = False
        try:
            now = int(time.time() * 1000)
            self.client.log_batch(run.info.run_id, metrics=[Metric(name, x, now, 0) for name, x in metrics.items()])
            with tempfile.TemporaryDirectory() as folder:
                card = self.copy_files(onnx, Path(folder), run.info.run_id)
                self.client.log_artifacts(run.info.run_id, folder, "model")
            is_new_model = self.create_model()
            number = self.client.create_model_version(
                self.name, f"{run.info.artifact_uri}/model", run.info.run_id, {TAG: version, **tags},
                description=card[:LONGEST_CARD],
            ).version  # fmt: skip
        except BaseException:
            with suppress(Exception):  # the remains are harmless
                if self.find(version) is None:  # otherwise the version exists, and only the response was lost
                    self.client.delete_run(run.info.run_id)
                    if is_new_model:
                        self.client.delete_registered_model(self.name)
            raise
        self.client.set_terminated(run.info.run_id)
        return number

    def create_model(self) -> bool:
        """Creates the registered model; False if it exists already."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return False
        return True

    def copy_files(self, onnx: str, folder: Path, run_id: str) -> str:
        """Copies the ONNX folder and writes MLflow's description of it (MLmodel); returns the model card."""
        from mlflow.models import Model

        for name in listed(onnx):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            storage.download(storage.join(onnx, name), folder / name)
        model = Model(artifact_path="model", run_id=run_id)
        model.add_flavor("onnx", data=ONNX_FILE, providers=["CPUExecutionProvider"])
        model.save(str(folder / "MLmodel"))
        return (folder / CARD_FILE).read_text(encoding="utf-8") if (folder / CARD_FILE).exists() else ""


def with_number(version: str, number: str) -> str:
    return f"{version} (version {number} there)"


@contextmanager
def mlflow_errors(state: str) -> Iterator[None]:
    """Converts MLflow's errors to one line that ends with `state`: what has been done so far."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:  # uploads raise errors of `requests`, which are OSErrors
        text = f"--register mlflow: {reason(error)}; {state}"
        if isinstance(error, MlflowException) and error.error_code not in TRANSIENT_CODES:
            raise UserError(text) from None
        raise TransientError(text) from None
