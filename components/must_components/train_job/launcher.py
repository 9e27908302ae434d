"""The stage train as a TrainJob: what its nodes read, the job itself, and the model that they leave."""

import hashlib
import logging
from typing import Any

import yaml

from must.base import storage
from must.base.files import ANSWERS_FILE
from must.base.names import listed
from must.method.model.bundle import summary_at
from must.runtime.keepalive import SILENCE
from must.runtime.notes import Facts, stage_note
from must.runtime.places import JobUri, WorkUri
from must.runtime.training import Trained, TrainRequest, origin, words_of_run
from must_components.train_job.jobs import Jobs
from must_components.train_job.launch import Launch
from must_components.train_job.manifest import request


def train_on_nodes(
    work_uri: str, *, index_sha256: str, classifier: str, output: str, nodes: dict[str, Any],
    preset: str = "", settings: dict[str, Any], epochs: int = 0, tensorboard_uri: str = "", model_name: str = "",
) -> Trained:  # fmt: skip
    """Trains, or attaches to the job that trains.

    Exits with the nodes' code (2, 75 or 1) and the job's last lines and events when it fails, with 75 when it is
    stopped itself: then the job trains on, unless the whole run is being stopped.
    """
    wanted = TrainRequest(work_uri, index_sha256, classifier, preset, settings, epochs)
    asked, (key, values) = wanted.decision_key(), wanted.job_values()
    job = WorkUri(work_uri).job(key + since(work_uri, asked))
    name = job_name(job.uri)
    with stage_note(work_uri, "train", values["checkpoints"], facts=Facts(trainjob=name)) as note:
        curves = storage.join(tensorboard_uri, key) if tensorboard_uri else ""
        prepare(job, values, wanted.classifier, curves, {"work_uri": work_uri, "key": asked})
        logging.getLogger("kubeflow").setLevel(logging.ERROR)  # it warns at length when it cannot read a version
        Launch(Jobs(), request(name, nodes, job.uri), job, int(nodes["timeout"]), model_name).run()
        copy_bundle(job.bundle, output)
        summary = summary_at(output)
        note.result = words_of_run(summary, f" on {int(nodes['nodes'])} nodes")
    return Trained(summary.to_dict(), origin(output))


def job_name(job: str) -> str:
    """The TrainJob's name for the place `job`: runs with the same key at two places must not find each other's."""
    return f"must-{hashlib.sha256(job.encode()).hexdigest()[:8]}-{job.rsplit('/', 1)[-1]}"


def since(work_uri: str, key: str) -> str:
    """Another job for what people have answered since: the one before is complete."""
    place = storage.join(WorkUri(work_uri).review(key), ANSWERS_FILE)
    return f"-{hashlib.sha256(storage.read_bytes(place)).hexdigest()[:8]}" if storage.exists(place) else ""


def prepare(job: JobUri, values: dict[str, Any], classifier: str, curves: str, asked: dict[str, str]) -> None:
    """What the nodes read: they see no file of this pod."""
    storage.write_bytes(job.classifier, storage.read_bytes(classifier))
    launcher = {"sign": job.sign, "silence": SILENCE}
    content = {"train": {**values, "classifier": job.classifier}, "tensorboard": curves, "launcher": launcher}
    content["answers"] = asked
    storage.write_bytes(job.description, yaml.safe_dump(content).encode())


def copy_bundle(uri: str, folder: str) -> None:
    for name in listed(uri):
        storage.download(storage.join(uri, name), storage.join(folder, name))
