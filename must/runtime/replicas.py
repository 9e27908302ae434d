"""The stage train on one machine, or on each of several where the platform starts it so: a CustomJob of Vertex AI."""

from __future__ import annotations

import tempfile
from typing import Any

from must.base.exits import exiting
from must.method.distributed.machines import machines
from must.runtime.supervise import supervised
from must.runtime.training import job_values


def train_on_replica(run_id: str, work_uri: str, **values: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trains, together with the other machines if there are any. `values` are those of training.train_here.

    The first machine keeps the stage's note, writes the model and tells about it; the others, of whose results Kubeflow
    Pipelines takes none, only train.

    Returns:
        The run's summary, and what the bundle tells about its origin; of another machine than the first: nothing.

    Raises:
        SystemExit: with the stage's code.
    """
    with exiting("train"):
        number = machines().number
    if number == 0:
        return supervised("train", "must.runtime.training:train_here", run_id, work_uri, **values)
    with exiting("train"):
        follow(work_uri, **values)
    return {}, {"sha256": ""}


def follow(
    work_uri: str, *, processes: str, classifier: str, output: str, tensorboard_uri: str = "", **values: Any
) -> None:
    """Trains; what this machine would write, the first one does."""
    from must.runtime.launch import number_of_processes, run_processes  # torch

    _, job = job_values(work_uri, classifier=classifier, **values)
    with tempfile.TemporaryDirectory() as folder:
        run_processes(job | {"classifier": classifier, "output": folder}, number_of_processes(processes), machines())
