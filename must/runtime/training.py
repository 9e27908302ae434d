"""Training inside one pod of the pipeline: the stage's parameters, its checkpoints' place, its processes."""

import hashlib
import tempfile
from typing import Any

from must.api.stages import call
from must.base import storage
from must.base.exits import exiting
from must.base.files import WEIGHTS_FILE
from must.method.distributed.machines import machines
from must.method.model.bundle import load_description
from must.method.train.provenance import run_key
from must.runtime.answers import keep_what_people_say
from must.runtime.check import training_settings
from must.runtime.mirror import mirrored
from must.runtime.notes import stage_note
from must.runtime.places import WorkUri
from must.runtime.supervise import supervised

OFTEN = 60  # seconds between checkpoints: a pod that is taken away may have half a second to save one


def train_here(
    work_uri: str,
    *,
    index_sha256: str,
    classifier: str,
    output: str,
    init: str = "",
    preset: str = "",
    settings: dict[str, Any] | None = None,
    epochs: int = 0,
    processes: str = "auto",
    tensorboard_uri: str = "",
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trains, or goes on with training. Returns the run's summary, and what the bundle tells about its origin."""
    from must.runtime.launch import launch, number_of_processes  # torch, which other users of this file do not have

    key, values = job_values(
        work_uri, index_sha256=index_sha256, classifier=classifier, init=init, preset=preset, settings=settings or {},
        epochs=epochs,
    )  # fmt: skip
    curves = storage.join(tensorboard_uri, key) if tensorboard_uri else ""
    count, together = number_of_processes(processes), machines()
    with stage_note(work_uri, "train", values["checkpoints"]) as note, mirrored(f"{output}/tensorboard", curves):
        values |= {"classifier": classifier, "output": output}
        summary = call("train", **values) if count == together.count == 1 else launch(values, count, together)
        if together.number == 0:
            key = decision_key(index_sha256, classifier, settings or {}, preset, epochs)
            keep_what_people_say(work_uri, key, output, classifier)
        note.result = trained(summary, f" on {together.count} machines" if together.count > 1 else "")
    return summary, origin(output)


def decision_key(index_sha256: str, classifier: str, settings: dict[str, Any], preset: str, epochs: int) -> str:
    """What `champion` calls this data with these settings, whatever training starts from."""
    return run_key(index_sha256, classifier, training_settings(settings, preset, epochs))


def trained(summary: dict[str, Any], where: str = "") -> str:
    """A few words for the note."""
    if not summary["steps"]:
        return "nothing to train: the ladder could keep none of it"
    return f"{summary['steps']:,} steps{where}, {summary['images_per_s']} images/s"


def job_values(
    work_uri: str, *, index_sha256: str, classifier: str, init: str, preset: str, settings: dict[str, Any], epochs: int
) -> tuple[str, dict[str, Any]]:
    """A key, and parameters of `must train` but for the classifier's and the output's place.

    The key is another one for each combination of data, classes, start and settings. Checkpoints are under it: a retry
    finds them, another run does not.
    """
    values = training_settings(settings, preset, epochs) | ({"init": init} if init else {})
    key = run_key(index_sha256, classifier, values)
    work = WorkUri(work_uri)
    places = {"shards": work.shards, "index_sha256": index_sha256, "checkpoints": work.checkpoints(key)}
    return key, {"checkpoint_seconds": OFTEN, **values, **places}


def origin(bundle: str) -> dict[str, Any]:
    """What the bundle's artifact carries in Kubeflow."""
    provenance = load_description(bundle).provenance
    weights = storage.read_bytes(storage.join(bundle, WEIGHTS_FILE))
    facts = {name: provenance.get(name) for name in ("index_sha256", "index_revision", "git_revision")}
    return {"sha256": hashlib.sha256(weights).hexdigest(), **facts}


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
