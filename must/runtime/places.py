"""The layout of the files below a run's work_uri. security.md lists who may write there.

WORK_URI/shards                       of all runs, with index.json
         classifiers/KEY              zero-shot classifiers, by a hash of their inputs
         models/NAME-KEY              the models of the classifiers: later stages need no hub
         checkpoints/KEY              of training, by data, classes, start and settings: a retry finds them
         labels/KEY                   refined labels of the images, of a run with answers, by the key of its checkpoints
         features/TOWER               of the pictures, by image tower: each picture passes once through a tower
         jobs/RUN_ID                  what a run's TrainJob reads, and the model that it writes
         notes/RUN_ID                 one note per stage, a copy of the report, and the run's summary page
         registry                     promoted models, unless the run has another registry_uri
"""

from must.base import storage
from must.base.files import CLASSIFIER_FILE


class JobUri:
    """The files that a TrainJob's launcher and its nodes exchange: their pods share no disk."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.description = storage.join(uri, "job.yaml")  # the parameters of training
        self.classifier = storage.join(uri, CLASSIFIER_FILE)
        self.bundle = storage.join(uri, "bundle")  # the model that the nodes write


class WorkUri:
    """A path that all stages can access, or gs://bucket/prefix."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.shards, self.models = storage.join(uri, "shards"), storage.join(uri, "models")
        self.features = storage.join(uri, "features")

    def notes(self, run_id: str) -> str:
        """The notes of one run. Runs without an id share one folder."""
        return storage.join(self.uri, "notes", run_id or "run")

    def classifier(self, key: str) -> str:
        return storage.join(self.uri, "classifiers", key)

    def checkpoints(self, key: str) -> str:
        return storage.join(self.uri, "checkpoints", key)

    def labels(self, key: str) -> str:
        return storage.join(self.uri, "labels", key)

    def job(self, run_id: str) -> JobUri:
        return JobUri(storage.join(self.uri, "jobs", run_id))

    def registry(self, registry_uri: str = "") -> str:
        """`registry_uri`, or the default if that is ''."""
        return registry_uri or storage.join(self.uri, "registry")
