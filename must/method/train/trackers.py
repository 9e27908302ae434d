"""Trackers of training curves besides the log: TensorBoard's files, an MLflow server, Kubeflow Trainer's status.

None of them can stop or slow down the training once it is under way. A tracker has the methods of `Tracker`.

**MLflow**: MLFLOW_TRACKING_URI is the server's address. MLFLOW_RUN_ID, as Kubeflow Pipelines sets it, names an existing
run; else the experiment is MLFLOW_EXPERIMENT_ID, MLFLOW_EXPERIMENT_NAME or the default one, and the run is new, or the
one that the checkpoint names.

**Kubeflow Trainer**: progress in `status.trainerStatus`, which `kubectl get trainjob -o yaml` and its SDK show. Trainer
2.3 sets three variables in a TrainJob's pods if its feature gate TrainJobStatus is on. It is not in --trackers: without
the variables nothing is sent, and a failed request only logs a warning.
"""

import json
import logging
import os
import queue
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from must.base.errors import UserError
from must.base.parameters import require
from must.base.text import one_line, printable
from must.config.defaults import require_packages

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
URL, CERTIFICATES, TOKEN = (f"KUBEFLOW_TRAINER_SERVER_{name}" for name in ("URL", "CA_CERT", "TOKEN"))  # two are files
EVERY = 10.0  # least seconds between two reports
STATUS_TIMEOUT = 10  # seconds
METRICS = ("loss", "confident", "agreement", "images_per_s")


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


class TrainerStatus:
    """Reports a run of `steps` steps, of which earlier attempts took `first_step`."""

    run_id = ""

    def __init__(self, steps: int, first_step: int) -> None:
        self.steps, self.first_step = steps, first_step
        self.started, self.sent, self.warned = time.monotonic(), 0.0, False
        self.last = (first_step - 1, dict[str, float]())

    def start(self, config: dict[str, Any]) -> None: ...

    def log(self, step: int, values: dict[str, float]) -> None:
        self.last = (step, values)
        if time.monotonic() - self.sent >= EVERY:
            self.send()

    def close(self, finished: bool) -> None:
        self.send()

    def send(self) -> None:
        self.sent = time.monotonic()
        try:
            self.post({"trainerStatus": self.status()})
        except (OSError, ValueError) as error:
            if not self.warned:
                logger.warning(f"cannot report to Kubeflow Trainer: {reason(error)}; training goes on")
            self.warned = True

    def status(self) -> dict[str, Any]:
        step, values = self.last
        done = step + 1 - self.first_step
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        status: dict[str, Any] = {"progressPercentage": 100 * (step + 1) // self.steps, "lastUpdatedTime": now}
        if done > 0:
            remaining = (time.monotonic() - self.started) / done * (self.steps - step - 1)
            status["estimatedRemainingSeconds"] = round(remaining)
        metrics = [{"name": name, "value": f"{values[name]:.6g}"} for name in METRICS if name in values]
        return status | ({"metrics": metrics} if metrics else {})

    def post(self, body: dict[str, Any]) -> None:
        """Raises OSError or ValueError: the request failed. The token is read each time: it expires in an hour."""
        token = Path(os.environ[TOKEN]).read_text().strip()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        trusted = ssl.create_default_context(cafile=os.environ[CERTIFICATES])
        handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusted))
        request = urllib.request.Request(os.environ[URL], json.dumps(body).encode(), headers, method="POST")
        urllib.request.build_opener(*handlers).open(request, timeout=STATUS_TIMEOUT).close()


MAKE: dict[str, Callable[[Attempt], Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow}


class Trackers:
    """`attempt`: without run_id; `run_ids` has those of each tracker by name. `steps`: of the whole run, for Kubeflow
    Trainer."""

    def __init__(self, names: Sequence[str], attempt: Attempt, run_ids: dict[str, str], steps: int = 0) -> None:
        self.attempt, self.steps = attempt, steps
        self.all = [AsyncTracker(name, MAKE[name](replace(attempt, run_id=run_ids.get(name, "")))) for name in names]

    def start(self, config: dict[str, Any]) -> dict[str, str]:
        """Returns the trackers' run_ids, for a later attempt.
        Raises ValueError: a new run cannot be tracked. A resumed run continues without the tracker."""
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
        if self.attempt.first_step < self.steps and all(map(os.environ.get, (URL, CERTIFICATES, TOKEN))):
            self.all.append(AsyncTracker("kubeflow", TrainerStatus(self.steps, self.attempt.first_step)))
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
