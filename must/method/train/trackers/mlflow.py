"""A run on an MLflow server.

MLFLOW_TRACKING_URI says which. MLFLOW_RUN_ID, as Kubeflow Pipelines sets it, names a run that is there; else the
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
DEFAULTS = {  # of MLflow's variables, where they are not set
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # its own patience is minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
OF_STEPS = "train/loss"  # the curve that tells which steps are there


class MLflow:
    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.run_id, self.given = attempt.run_id, os.environ.get("MLFLOW_RUN_ID", "")
        self.last = -1  # step that the server has

    def start(self, config: dict[str, Any]) -> None:
        self.client = mlflow_client("--trackers mlflow")
        run = self.existing() or self.client.create_run(
            experiment(self.client), run_name=os.environ.get("MLFLOW_RUN_NAME")
        )
        self.run_id = run.info.run_id
        history = self.client.get_metric_history(self.run_id, OF_STEPS) if OF_STEPS in run.data.metrics else []
        self.last = max((point.step for point in history), default=-1)
        self.add_parameters(config, run.data.params)
        for line in self.attempt.lines:  # what a kill kept from being sent
            self.log(line["step"], points(line))

    def existing(self) -> Any:
        """The run to go on with, or None."""
        from mlflow.exceptions import MlflowException

        if self.given:
            return self.client.get_run(self.given)
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

    def add_parameters(self, config: dict[str, Any], there: dict[str, str]) -> None:
        """A parameter of MLflow cannot change: of a run that goes on, the first attempt's stay."""
        from mlflow.entities import Param

        new = {name: printable(value, LONGEST_VALUE) for name, value in config.items() if name not in there}
        self.client.log_batch(self.run_id, params=[Param(name, value) for name, value in new.items()])

    def log(self, step: int, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        if step > self.last:
            now = int(time.time() * 1000)
            points = [Metric(f"train/{name}", value, now, step) for name, value in values.items()]
            self.client.log_batch(self.run_id, metrics=points)
            self.last = step

    def close(self, finished: bool) -> None:
        if not self.given:  # that run is its maker's to end
            self.client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")


def address(flag: str) -> str:
    """MLFLOW_TRACKING_URI. Raises ValueError: it is not set; says so of `flag`."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    require(bool(uri), f"{flag}: set MLFLOW_TRACKING_URI to the server's address, such as http://host:5000")
    return uri


def mlflow_client(flag: str) -> Any:
    """An MlflowClient of the server at MLFLOW_TRACKING_URI, which is not asked for anything yet.

    Raises:
        ValueError: as `address` does.
    """
    uri = address(flag)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(uri)


def experiment(client: Any) -> str:
    """The number of the experiment that MLflow's variables name, made if it is not there; else of the default one."""
    if number := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return number
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "")
    if not name:
        return "0"
    found = client.get_experiment_by_name(name)
    return found.experiment_id if found else client.create_experiment(name)
