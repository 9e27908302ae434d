"""A run on an MLflow server.

MLFLOW_TRACKING_URI is its address. MLFLOW_RUN_ID, as Kubeflow Pipelines sets it, names an existing run; else the
experiment is MLFLOW_EXPERIMENT_ID, MLFLOW_EXPERIMENT_NAME or the default one, and the run is new, or the one that the
checkpoint names.
"""

import os
import time
from typing import Any

from must.base.parameters import require
from must.base.text import printable
from must.method.train.trackers.base import Attempt, points

LONGEST_VALUE = 6000  # characters of a parameter's value
DEFAULTS = {  # of MLflow's environment variables
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's own default takes minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
STEPS_CURVE = "train/loss"  # the curve that shows which steps were logged


class MLflow:
    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.run_id, self.external_run_id = attempt.run_id, os.environ.get("MLFLOW_RUN_ID", "")
        self.last = -1  # the last step that the server has

    def start(self, config: dict[str, Any]) -> None:
        self.client = mlflow_client("--trackers mlflow")
        run = self.existing() or self.client.create_run(
            experiment(self.client), run_name=os.environ.get("MLFLOW_RUN_NAME")
        )
        self.run_id = run.info.run_id
        history = self.client.get_metric_history(self.run_id, STEPS_CURVE) if STEPS_CURVE in run.data.metrics else []
        self.last = max((point.step for point in history), default=-1)
        self.add_parameters(config, run.data.params)
        for line in self.attempt.lines:  # points that a killed attempt did not send
            self.log(line["step"], points(line))

    def existing(self) -> Any:
        """The run to continue, or None."""
        from mlflow.exceptions import MlflowException

        if self.external_run_id:
            return self.client.get_run(self.external_run_id)
        if not self.run_id:
            return None
        try:
            run = self.client.get_run(self.run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # another server, or it was deleted
                return None
            raise
        self.client.update_run(self.run_id, status="RUNNING")
        return run

    def add_parameters(self, config: dict[str, Any], logged: dict[str, str]) -> None:
        """Logs new parameters only: MLflow's cannot change, so those of the first attempt are kept."""
        from mlflow.entities import Param

        new = {name: printable(value, LONGEST_VALUE) for name, value in config.items() if name not in logged}
        self.client.log_batch(self.run_id, params=[Param(name, value) for name, value in new.items()])

    def log(self, step: int, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        if step > self.last:
            now = int(time.time() * 1000)
            points = [Metric(f"train/{name}", value, now, step) for name, value in values.items()]
            self.client.log_batch(self.run_id, metrics=points)
            self.last = step

    def close(self, finished: bool) -> None:
        if not self.external_run_id:  # such a run is ended by its creator
            self.client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")


def address(flag: str) -> str:
    """MLFLOW_TRACKING_URI. Raises ValueError: it is not set; the message begins with `flag`."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    require(bool(uri), f"{flag}: set MLFLOW_TRACKING_URI to the server's address, such as http://host:5000")
    return uri


def mlflow_client(flag: str) -> Any:
    """An MlflowClient of the server at MLFLOW_TRACKING_URI, without any request yet.

    Raises:
        ValueError: as `address` does.
    """
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
