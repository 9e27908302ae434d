"""One process of training on several nodes: torchrun -m must.runtime.node JOB.

JOB is a folder or URI that every node can access. Its job.yaml holds the parameters of `must train`; the bundle is
written to its folder bundle. Only paths below work_uri outlive the nodes.
"""

import os
import sys
import tempfile
from pathlib import Path

import yaml

from must.api.stages import call
from must.base import storage
from must.base.exits import exiting
from must.base.files import DESCRIPTION_FILE
from must.base.processes import end_with_parent
from must.runtime.places import JobUri
from must.runtime.training import mirrored, teach


def train_job(job: str) -> None:
    """Trains; rank 0 then copies the bundle to JOB, its description last."""
    storage.wait_for_credentials(job)  # the launcher has written there
    content = yaml.safe_load(storage.read_bytes(JobUri(job).description))
    storage.wait_for_credentials(content["tensorboard"])
    first = os.environ.get("RANK", "0") == "0"
    with tempfile.TemporaryDirectory() as folder, mirrored(folder, content["tensorboard"] if first else ""):
        call("train", **content["train"], output=folder)
        if first and content["answers"]:
            teach(content["train"], folder, content["answers"], storage.join(job, "labels"))
        if first:
            publish(Path(folder), JobUri(job).bundle)


def publish(folder: Path, uri: str) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in sorted(files, key=lambda path: path.name == DESCRIPTION_FILE):
        storage.upload(path, storage.join(uri, str(path.relative_to(folder))))


if __name__ == "__main__":
    end_with_parent()
    with exiting("train"):
        train_job(sys.argv[1])
