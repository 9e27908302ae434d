"""The stage train as a TrainJob: writes the nodes' input, runs the job, and copies the model."""

import hashlib
import logging
from typing import Any

import yaml

from must.base import storage
from must.base.names import listed
from must.method.model.bundle import summary_at
from must.runtime.keepalive import SILENCE
from must.runtime.notes import Facts, stage_note
from must.runtime.places import JobUri, WorkUri
from must.runtime.training import Trained, decision_key, job_values, origin, words_of_run
from must_components.train_job.jobs import Jobs
from must_components.train_job.launch import Launch
from must_components.train_job.manifest import request


def train_on_nodes(
    work_uri: str, *, index_sha256: str, classifier: str, output: str, nodes: dict[str, Any],
    preset: str = "", settings: dict[str, Any], epochs: int = 0, tensorboard_uri: str = "", model_name: str = "",
    answers: str = "",
) -> Trained:  # fmt: skip
    """Trains, or attaches to the running job.

    Exits with the nodes' code (2, 75 or 1) and the job's last lines and events when it fails, with 75 when this process
    is stopped: then the job continues, unless the whole run is being stopped.
    """
    key, values = job_values(work_uri, index_sha256, classifier, preset, settings, epochs)
    work = WorkUri(work_uri)
    job = work.job(decision_key(key, answers))  # new answers start a new job
    # Runs with the same key in two folders need two jobs.
    name = f"must-{hashlib.sha256(job.uri.encode()).hexdigest()[:8]}-{job.uri.rsplit('/', 1)[-1]}"
    with stage_note(work_uri, "train", values["checkpoints"], facts=Facts(trainjob=name)) as note:
        curves = storage.join(tensorboard_uri, key) if tensorboard_uri else ""
        prepare(job, values, classifier, curves, answers)
        logging.getLogger("kubeflow").setLevel(logging.ERROR)  # hides a long warning about an unknown version
        Launch(Jobs(), request(name, nodes, job.uri), job, int(nodes["timeout"]), model_name).run()
        copy_bundle(job.bundle, output)
        summary = summary_at(output)
        note.result = words_of_run(summary, f" on {int(nodes['nodes'])} nodes")
    return Trained(summary.to_dict(), origin(output))


def prepare(job: JobUri, values: dict[str, Any], classifier: str, curves: str, answers: str) -> None:
    """Writes the nodes' input to storage: they cannot read this pod's files."""
    storage.write_bytes(job.classifier, storage.read_bytes(classifier))
    launcher = {"sign": job.heartbeat, "silence": SILENCE}
    content = {"train": {**values, "classifier": job.classifier}, "tensorboard": curves, "launcher": launcher}
    content["answers"] = answers
    storage.write_bytes(job.description, yaml.safe_dump(content).encode())


def copy_bundle(uri: str, folder: str) -> None:
    for name in listed(uri):
        storage.download(storage.join(uri, name), storage.join(folder, name))
