"""A copy of what is promoted in an MLflow model registry, with the alias `champion`.

Our own registry decides; this one follows. A version there is a run's artifacts (the ONNX folder: model, labels, model
card) with the metrics as the run's. It is made last, in one request, so that there is none without its files; its tag
tells which of our versions it is, so that a repeated promotion finds it.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from must.base import storage
from must.base.errors import TransientError, UserError
from must.base.files import CARD_FILE, LONGEST_CARD, ONNX_FILE
from must.base.names import listed
from must.method.train.trackers.base import reason
from must.method.train.trackers.mlflow import connect, experiment

ALIAS, TAG = "champion", "must.version"
MAY_PASS = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")  # MLflow's codes; no connection too


class MlflowRegistry:
    """The versions of one model in MLflow. They raise ValueError; TransientError where the same may work later."""

    title = "MLflow"

    def __init__(self, name: str) -> None:
        self.name = name
        with translate_errors("nothing was promoted"):
            self.client = connect("--register mlflow")
            self.find("")  # a server that does not answer is known before anything is done

    def find(self, version: str) -> str | None:
        """MLflow's number of our version, if it is there."""
        for found in self.client.search_model_versions(f"name = '{self.name}'"):
            if found.tags.get(TAG) == version:
                return found.version
        return None

    def put(self, version: str, onnx: str, metrics: dict[str, float], tags: dict[str, str]) -> str:
        """Makes the version unless it is there, and moves the alias to it; returns what it is called there.

        Args:
            onnx: the folder written by `must export`.
            tags: of the version, besides its name here.
        """
        with translate_errors(f"{version} is the champion of the registry, but not in MLflow; run the same again"):
            number = self.find(version) or self.add(version, onnx, metrics, tags)
            self.client.set_registered_model_alias(self.name, ALIAS, number)
        return called(version, number)

    def move(self, version: str) -> str | None:
        """Moves the alias to a version that is there; None if it is not, and the alias stays."""
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
