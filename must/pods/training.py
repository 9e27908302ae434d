"""Training in a pod of the pipeline: its parameters, its checkpoint folder, its processes (with torchrun).

As a program it is one process of training on several nodes: torchrun -m must.pods.training JOB. JOB is a folder or
URI that every node can access. Its job.yaml holds the parameters of `must train`; the bundle is written to its folder
bundle. Only paths below work_uri outlive the nodes."""

import math
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from must.api.run import run
from must.base import storage
from must.base.parameters import require
from must.base.processes import check_processes, end_with_parent, make_child_environment
from must.base.program import BUG, PREEMPTED, exiting, handling
from must.config.work import DESCRIPTION_FILE, JOB_BUNDLE, JOB_FILE, REFINED_FILE, Workspace
from must.model.description import RunSummary, load_description, read_summary
from must.pods.check import make_training_settings
from must.pods.notes import Facts
from must.training.recipe import run_key


def parse_processes(text: str) -> int:
    """Parses a number, or auto: one process per GPU of this machine, at least one."""
    if text == "auto":
        import torch

        return max(1, torch.cuda.device_count())
    require(text.isdigit() and int(text) >= 1, f"processes '{text}': a number of 1 or more, or auto")
    return int(text)


def launch(values: dict[str, Any], processes: int) -> RunSummary:
    """Runs `must train` in `processes` processes; returns the run's summary, read from the written model.

    A SIGTERM is forwarded, so that the processes save a checkpoint before they stop.
    Raises SystemExit: the processes failed. The code is that of the process that ended first: 2, wrong input (with a
    line on standard error); 75, stopped and resumable."""
    check_processes(processes, "processes")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values, file)
        file.flush()
        command = [sys.executable, "-m", "must.model.distributed", "--standalone"]
        command.append(f"--nproc-per-node={processes}")
        command += ["-m", "must", "train", "--config", file.name]
        child = subprocess.Popen(command, env=make_child_environment())
        with handling(signal.SIGTERM, lambda number, _: child.send_signal(number)):
            code = child.wait()
    if code == -signal.SIGTERM:  # before torchrun had installed its signal handler
        code = PREEMPTED
    if code:
        raise SystemExit(code if code > 0 else BUG)
    return read_summary(values["output"])


CHECKPOINT_SECONDS = 60  # between checkpoints: a pod that is preempted may have only half a second to save one


def make_job_values(
    work_uri: str, index_sha256: str, classifier: str, preset: str, settings: dict[str, Any], epochs: int
) -> tuple[str, dict[str, Any]]:
    """A key, and the parameters of `must train` except `classifier` and `output`.

    The key, also that of the decision on this run, is different for each combination of data, classes and settings. It
    is part of the checkpoints' path: a retry finds them, a different run does not."""
    values = make_training_settings(settings, preset, epochs)
    key, work = run_key(index_sha256, classifier, values), Workspace(work_uri)
    inputs = {"shards": work.place("shards"), "index_sha256": index_sha256, "features": work.place("features")}
    inputs |= {"checkpoints": work.place("checkpoints", key)}
    return key, {"checkpoint_seconds": CHECKPOINT_SECONDS, **values, **inputs}


def train(
    facts: Facts, work_uri: str, *, index_sha256: str, classifier: str, bundle: str, preset: str = "",
    settings: dict[str, Any] | None = None, epochs: int = 0, processes: str = "auto", answers: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Trains MUST; a retry resumes from the newest checkpoint.

    Args:
        processes: a number, or auto for one per GPU; several run under torchrun.
        answers: URI of people's answers about the images, or ''."""
    key, job = make_job_values(work_uri, index_sha256, classifier, preset, settings or {}, epochs)
    count = parse_processes(processes)
    facts.checkpoints = job["checkpoints"]
    facts.save()
    job |= {"classifier": classifier, "output": bundle}
    summary: RunSummary = run("train", **job) if count == 1 else launch(job, count)
    facts.result = f"{summary.steps:,} steps, {summary.images_per_s} images/s"
    if answers:
        labels = Workspace(work_uri).place("labels", key)
        teach(job, bundle, answers, labels)
        report_labels(facts, labels)
    return describe_bundle(bundle, summary)


def describe_bundle(output: str, summary: RunSummary) -> dict[str, Any]:
    """For Kubeflow's page: the numbers of the run (`training`), and where the `bundle` comes from (`read_origin`)."""
    numbers, made_from = keep_plain(asdict(summary)), read_origin(output)
    name = {"display_name": f"adapted model {made_from['sha256'][:12]}"}
    return {
        "training": {key: float(value) for key, value in numbers.items()},
        "bundle": keep_plain(made_from) | numbers | name,
    }


def teach(job: dict[str, Any], bundle: str, answers: str, labels: str) -> None:
    """Gives the trained bundle people's answers, and writes the images' labels to the folder `labels`."""
    values = {name: job[name] for name in ("shards", "index_sha256", "features", "classifier")}
    run("refine", **values, model=bundle, answers=answers, output=labels)


def report_labels(facts: Facts, labels: str) -> None:
    """Where the images' labels are, and how many images are left to be looked at."""
    facts.result += f"; labels with the answers in {labels}"
    facts.labels = (storage.read_json(storage.join(labels, REFINED_FILE), "labels")["accepted"] or {}).get("text", "")


def keep_plain(facts: dict[str, Any]) -> dict[str, Any]:
    """Removes None, NaN and infinite numbers, which Kubeflow refuses in the metadata of an artifact."""
    return {
        name: value
        for name, value in facts.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }


def read_origin(bundle: str) -> dict[str, Any]:
    """The sha256 of the bundle's weights, and the revisions of its data and code."""
    description = load_description(bundle)
    provenance = description.provenance
    return {
        "sha256": description.weights_sha256,
        "index_sha256": provenance.index_sha256 or None,
        "index_revision": provenance.index_revision,
        "git_revision": provenance.git_revision,
    }


def train_job(job: str) -> None:
    """Trains; rank 0 then copies the bundle to JOB, its description last."""
    storage.wait_for_credentials(job)  # the launcher has written there
    content = yaml.safe_load(storage.read_bytes(storage.join(job, JOB_FILE)))
    first = os.environ.get("RANK", "0") == "0"
    with tempfile.TemporaryDirectory() as folder:
        run("train", **content["train"], output=folder)
        if first and content["answers"]:
            leave_process_group()
            teach(content["train"], folder, content["answers"], content["labels"])
        if first:
            publish(Path(folder), storage.join(job, JOB_BUNDLE))


def leave_process_group() -> None:
    """From now on this process, rank 0 after its training, works alone, with all cores of its node: `must refine` would
    wait for the others, which have ended. LOCAL_RANK stays: it names the GPU."""
    from must.model.distributed import LAUNCHED

    for name in (*LAUNCHED, "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)


def publish(folder: Path, uri: str) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in sorted(files, key=lambda path: path.name == DESCRIPTION_FILE):
        storage.upload(path, storage.join(uri, str(path.relative_to(folder))))


if __name__ == "__main__":
    end_with_parent()
    with exiting("train"):
        train_job(sys.argv[1])
