"""All trackers of a run. None of them can stop or slow down the training once it is under way."""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from must.base.errors import UserError
from must.config.trackers import require_packages
from must.method.train.trackers.base import Attempt, Tracker, points, reason
from must.method.train.trackers.mlflow import MLflow
from must.method.train.trackers.trainer_status import TrainerStatus

logger = logging.getLogger(__name__)

FLUSH_TIMEOUT = 60.0  # seconds that a tracker has at the end to send its queue
LAST_LINES_TIMEOUT = 5.0  # the same if the run was stopped, as the process may be killed soon


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


MAKE: dict[str, Callable[[Attempt], Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow}


class Trackers:
    """Args:
    attempt: without run_id; `run_ids` has those of each tracker by name.
    steps: of the whole run, for Kubeflow Trainer.
    """

    def __init__(self, names: Sequence[str], attempt: Attempt, run_ids: dict[str, str], steps: int = 0) -> None:
        self.attempt, self.steps = attempt, steps
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
        if self.attempt.first_step < self.steps and TrainerStatus.is_wanted():
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
