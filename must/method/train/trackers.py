"""Trackers of training curves besides the log: TensorBoard's files, an MLflow server.

None of them can stop or slow down the training once it is under way. A tracker has the methods of `Tracker`.

MLFLOW_TRACKING_URI is the MLflow server's address. MLFLOW_RUN_ID, as Kubeflow Pipelines sets it, names an existing
run; else the experiment is MLFLOW_EXPERIMENT_ID, MLFLOW_EXPERIMENT_NAME or the default one, and the run is new, or the
one that the checkpoint names.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from must.base.errors import UserError
from must.base.parameters import require
from must.base.text import one_line, printable
from must.config.trackers import require_packages

logger = logging.getLogger(__name__)

FLUSH_TIMEOUT = 60.0  # seconds that a tracker has at the end to send its queue
LAST_LINES_TIMEOUT = 5.0  # the same if the run was stopped, as the process may be killed soon
LONGEST_VALUE = 6000  # characters of a parameter's value
DEFAULTS = {  # of MLflow's environment variables
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's own default takes minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
STEPS_CURVE = "train/loss"  # the curve that shows which steps were logged


@dataclass(frozen=True)
class Attempt:
    """One attempt of a run, which may resume an earlier attempt."""

    folder: Path  # the run's output
    first_step: int  # 0 where the run begins
    lines: list[dict[str, Any]]  # the log up to `first_step`: 'step' and values
    run_id: str  # the tracker's name for the run, from the checkpoint; '' for a new one


def points(values: dict[str, Any]) -> dict[str, float]:
    """The values of a log line that are points of curves."""
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float) and name != "step"}


def reason(error: Exception) -> str:
    """The message of an error of a tracker's package, in one line of at most 300 characters."""
    return printable(one_line(error), 300)


class Tracker(Protocol):
    """Receives the curves of one run. Steps are ascending; those of an earlier attempt are repeated, and must be logged
    only once."""

    run_id: str  # set by `start`: a later attempt needs it to continue the same run; '' if it does not

    def start(self, config: dict[str, Any]) -> None:
        """Starts or continues the run. Any exception: the tracker does not exist or does not respond."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """A point of each curve."""

    def close(self, finished: bool) -> None:
        """Ends the run. `finished`: it took its last step; else it was stopped, and may be resumed."""


class TensorBoard:
    """Points after the checkpoint of an earlier attempt are removed (TensorBoard's purge)."""

    run_id = ""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt

    def start(self, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder, first = self.attempt.folder / "tensorboard", self.attempt.first_step
        self.writer = SummaryWriter(str(folder), purge_step=first or None)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"train/{name}", value, step)

    def close(self, finished: bool) -> None:
        self.writer.close()


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


MAKE: dict[str, Callable[[Attempt], Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow}


class Trackers:
    """`attempt`: without run_id; `run_ids` has those of each tracker by name."""

    def __init__(self, names: Sequence[str], attempt: Attempt, run_ids: dict[str, str]) -> None:
        self.attempt = attempt
        self.all = [AsyncTracker(name, MAKE[name](replace(attempt, run_id=run_ids.get(name, "")))) for name in names]

    def start(self, config: dict[str, Any]) -> dict[str, str]:
        """Returns the trackers' run_ids, for a later attempt.

        Raises:
            ValueError: a new run cannot be tracked. A resumed run continues without the tracker.
        """
        require_packages([tracker.name for tracker in self.all])
        for tracker in list(self.all):
            try:
                tracker.tracker.start(config)
            except Exception as error:  # the packages have many exceptions of their own
                if not self.attempt.first_step:
                    message = reason(error)
                    prefix = f"--trackers {tracker.name}: "
                    raise UserError(message if message.startswith(prefix) else prefix + message) from None
                tracker.warn(error)
                self.all.remove(tracker)
        return {tracker.name: tracker.tracker.run_id for tracker in self.all if tracker.tracker.run_id}

    def log(self, step: int, values: dict[str, Any]) -> None:
        for tracker in self.all:
            tracker.log(step, points(values))

    def close(self, finished: bool) -> None:
        for tracker in self.all:
            tracker.close(finished)


class AsyncTracker:
    """Sends points to a tracker in a thread, so that training does not wait for a server."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name, self.tracker, self.failed = name, tracker, False
        self.points: queue.SimpleQueue[tuple[int, dict[str, float]] | bool] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None

    def log(self, step: int, values: dict[str, float]) -> None:
        self.begin()
        if not self.failed:
            self.points.put((step, values))

    def close(self, finished: bool) -> None:
        self.begin()
        self.points.put(finished)
        assert self.thread is not None
        patience = FLUSH_TIMEOUT if finished else LAST_LINES_TIMEOUT
        self.thread.join(patience)
        if self.thread.is_alive() and not self.failed:
            self.warn(TimeoutError(f"timed out with values unsent ({patience:.0f} s)"))

    def begin(self) -> None:
        """Starts the thread, at the first point and not earlier: loader processes are forked before."""
        if self.thread is None:
            self.thread = threading.Thread(target=self.work, name=f"tracker-{self.name}", daemon=True)
            self.thread.start()

    def work(self) -> None:
        try:
            while not isinstance(point := self.points.get(), bool):
                self.tracker.log(*point)
            self.tracker.close(point)
        except Exception as error:  # the packages have many exceptions of their own
            self.warn(error)

    def warn(self, error: Exception) -> None:
        """Called once: nothing is sent to a tracker after it failed."""
        self.failed = True
        logger.warning(f"warning: --trackers {self.name}: {reason(error)}; training goes on without it")
