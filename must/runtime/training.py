"""Training inside one pod of the pipeline: the stage's parameters, its checkpoints' place, its processes."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

from must.api.stages import call
from must.base import storage
from must.base.files import WEIGHTS_FILE
from must.method.model.bundle import load_description
from must.method.train.provenance import run_key
from must.runtime.answers import keep_what_people_say
from must.runtime.check import training_settings
from must.runtime.evaluation import plain
from must.runtime.launch import launch, number_of_processes
from must.runtime.mirror import mirrored
from must.runtime.notes import stage_note
from must.runtime.places import WorkUri

OFTEN = 60  # seconds between checkpoints: a pod that is taken away may have half a second to save one


@dataclass(frozen=True)
class TrainRequest:
    """What a run asks of training, as its stage is given it."""

    work_uri: str
    index_sha256: str
    classifier: str
    init: str = ""
    preset: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    epochs: int = 0

    def decision_key(self) -> str:
        """What `champion` calls this data with these settings, whatever training starts from."""
        return run_key(self.index_sha256, self.classifier, training_settings(self.settings, self.preset, self.epochs))

    def job_values(self) -> tuple[str, dict[str, Any]]:
        """A key, and parameters of `must train` but for the classifier's and the output's place.

        The key is another one for each combination of data, classes, start and settings. Checkpoints are under it: a
        retry finds them, another run does not.
        """
        init = {"init": self.init} if self.init else {}
        values = training_settings(self.settings, self.preset, self.epochs) | init
        key, work = run_key(self.index_sha256, self.classifier, values), WorkUri(self.work_uri)
        places = {"shards": work.shards, "index_sha256": self.index_sha256, "checkpoints": work.checkpoints(key)}
        return key, {"checkpoint_seconds": OFTEN, **values, **places}


@dataclass(frozen=True)
class Trained:
    """The run's summary, and what the bundle tells about its origin."""

    summary: dict[str, Any]
    origin: dict[str, Any]

    @property
    def metadata(self) -> dict[str, Any]:
        """What the bundle's artifact carries in Kubeflow."""
        return plain(self.origin | self.summary) | {"display_name": f"adapted model {self.origin['sha256'][:12]}"}


def train(
    work_uri: str, *, index_sha256: str, classifier: str, output: str, init: str = "", preset: str = "",
    settings: dict[str, Any], epochs: int = 0, processes: str = "auto", tensorboard_uri: str = "",
) -> Trained:  # fmt: skip
    """Trains, or goes on with training."""
    asked = TrainRequest(work_uri, index_sha256, classifier, init, preset, settings, epochs)
    key, job = asked.job_values()
    curves = storage.join(tensorboard_uri, key) if tensorboard_uri else ""
    count = number_of_processes(processes)
    with stage_note(work_uri, "train", job["checkpoints"]) as note, mirrored(f"{output}/tensorboard", curves):
        job |= {"classifier": asked.classifier, "output": output}
        summary = call("train", **job) if count == 1 else launch(job, count)
        keep_what_people_say(work_uri, asked.decision_key(), output, asked.classifier)
        note.result = in_words(summary)
    return Trained(summary, origin(output))


def in_words(summary: dict[str, Any], where: str = "") -> str:
    """A few words for the note."""
    return f"{summary['steps']:,} steps{where}, {summary['images_per_s']} images/s"


def origin(bundle: str) -> dict[str, Any]:
    """The sha256 of its weights, and the data's and the code's revision."""
    provenance = load_description(bundle).provenance
    weights = storage.read_bytes(storage.join(bundle, WEIGHTS_FILE))
    facts = {name: provenance.get(name) for name in ("index_sha256", "index_revision", "git_revision")}
    return {"sha256": hashlib.sha256(weights).hexdigest(), **facts}
