"""Where a run's files are below its work_uri. The layout is defined here alone; security.md says who may write there.

WORK_URI/shards                       of all runs, with index.json
         classifiers/KEY              zero-shot classifiers, by what they were made of
         models/NAME-KEY              the models they were made with: no later stage asks a hub for them
         checkpoints/KEY, jobs/KEY    of training, by data, classes, start and settings: a retry finds them
         reviews/KEY                  what people are asked about a model, the page for it, and their answers
         notes/RUN_ID                 a note a stage, a copy of the report, and the run's page
         registry                     promoted models, unless the run names another place
"""

from __future__ import annotations

from dataclasses import dataclass

from must.base import storage
from must.base.files import CLASSIFIER_FILE


@dataclass(frozen=True)
class WorkUri:
    """A path that all stages see, or gs://bucket/prefix."""

    uri: str

    @property
    def shards(self) -> str:
        return storage.join(self.uri, "shards")

    @property
    def every_runs_notes(self) -> str:
        return storage.join(self.uri, "notes")

    def notes(self, run_id: str) -> str:
        """The notes of one run; of all runs without an id, where `run_id` is ''."""
        return storage.join(self.every_runs_notes, run_id or "run")

    def classifier(self, key: str) -> str:
        return storage.join(self.uri, "classifiers", key)

    @property
    def models(self) -> str:
        return storage.join(self.uri, "models")

    def checkpoints(self, key: str) -> str:
        return storage.join(self.uri, "checkpoints", key)

    def job(self, key: str) -> JobUri:
        return JobUri(storage.join(self.uri, "jobs", key))

    @property
    def reviews(self) -> str:
        return storage.join(self.uri, "reviews")

    def review(self, key: str) -> str:
        return storage.join(self.reviews, key)

    def registry(self, other: str = "") -> str:
        """`other`, unless that is ''."""
        return other or storage.join(self.uri, "registry")


@dataclass(frozen=True)
class JobUri:
    """What a TrainJob's launcher and its nodes hand to one another: they see no file of each other's pods."""

    uri: str

    @property
    def description(self) -> str:
        """The parameters of training."""
        return storage.join(self.uri, "job.yaml")

    @property
    def classifier(self) -> str:
        return storage.join(self.uri, CLASSIFIER_FILE)

    @property
    def bundle(self) -> str:
        """The model that the nodes leave."""
        return storage.join(self.uri, "bundle")

    @property
    def sign(self) -> str:
        """The launcher's heartbeat."""
        return storage.join(self.uri, "launcher.json")
