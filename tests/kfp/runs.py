"""Runs on a Kubeflow Pipelines, started, disturbed, waited for and deleted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import kfp_server_api as api

from must.base import storage
from must.runtime.notes import read_notes
from must.runtime.summary import determine_outcome
from must_pipeline import schedule
from must_pipeline.cluster.config import Cluster
from must_pipeline.server import wait
from must_pipeline.server.api import Kfp, api_errors
from must_pipeline.server.parameters import check_parameters
from must_pipeline.submit import start
from tests.kfp.cluster import Pods


class StuckError(ValueError):
    """A run that does not go on; nor would the next one."""


@dataclass(frozen=True)
class Seen:
    state: str  # what Kubeflow says
    line: str  # the first line of the page
    tries: int  # of the training; 0: it did not begin
    promised: str = ""  # of a pod that vanishes: what Argo's setting makes of it


class Runs:
    """Everything goes by one name: a pipeline, an experiment, runs, a schedule and a folder."""

    def __init__(self, kfp: Kfp, pods: Pods, name: str, cluster: Cluster, place: str, longest: float) -> None:
        """Args: `longest`: seconds a run may take."""
        self.kfp, self.pods, self.longest = kfp, pods, longest
        self.name, self.cluster, self.place = name, cluster, place
        self.work = storage.join(place, "work")
        self.experiment = kfp.experiment(name)
        self.pipeline = ""
        self.made: list[str] = []
        self.shown = ""

    def start(self, file: Path, parameters: dict[str, Any], name: str, scheduled: bool = False) -> str:
        """The new run's id. `scheduled`: it is the first one of a schedule of every minute."""
        demo = storage.join(self.place, "demo")
        values = {
            "source": f"{demo}/images/unlabeled", "test_source": f"{demo}/images/test", "labels": "folder",
            "classes": f"{demo}/classes.yaml", "model": f"{demo}/model", "pretrained": "", "model_name": "digits",
            "work_uri": self.work, **parameters,
        }  # fmt: skip
        check_parameters(file, values)
        self.pipeline, version, _ = self.kfp.upload(file, self.name)
        if scheduled:
            wanted = schedule.Schedule(self.name, "0 * * * * *", self.name, self.name, parameters=values)
            schedule.apply(self.kfp, wanted, file)
            try:
                self.made.append(self.first_of_schedule())
            finally:  # not deleted yet: Kubernetes deletes a schedule's workflows with it
                schedule.switch(self.kfp, "pause", self.name)
        else:
            body = api.V2beta1Run(
                display_name=f"{self.name} {name}",
                experiment_id=self.experiment,
                pipeline_version_reference=api.V2beta1PipelineVersionReference(self.pipeline, version),
                runtime_config=api.V2beta1RuntimeConfig(parameters=values),
                service_account=self.kfp.account or None,
            )
            self.made.append(start(self.kfp, body))
        return self.made[-1]

    def first_of_schedule(self) -> str:
        for _ in self.until(f"the schedule {self.name} started no run"):
            with api_errors(self.kfp.host):
                for run in self.kfp.pages(self.kfp.runs.run_service_list_runs, "runs"):
                    if run.recurring_run_id and run.experiment_id == self.experiment and run.run_id not in self.made:
                        return run.run_id
        raise AssertionError

    def until(self, trouble: str, pause: float = wait.POLL) -> Iterator[None]:
        """A turn now and after each pause. Raises StuckError when a run's longest time is over."""
        deadline = time.monotonic() + self.longest
        while time.monotonic() < deadline:
            yield
            time.sleep(pause)
        raise StuckError(f"{trouble} after {self.longest:g} s")

    def trainings(self) -> set[str]:
        """Those that have a checkpoint. Each combination of data and settings has a folder of its own."""
        try:
            entries = list(storage.list_files(storage.join(self.work, "checkpoints")))
        except (FileNotFoundError, NotADirectoryError):
            return set()
        return {entry.name for entry in entries if entry.name.endswith("/LAST")}

    def until_checkpoint(self, run_id: str, before: set[str]) -> None:
        """So that what happens next happens in the middle of training. `before`: trainings() when the run began."""
        for _ in self.until(f"the run {run_id} had no checkpoint", pause=2.0):
            if self.trainings() - before:
                return
            if self.look(run_id) in wait.OVER:
                raise ValueError(f"the run {run_id} was over before its training had a checkpoint")

    def look(self, run_id: str) -> str:
        """The run's state; what it does is shown when it changes. Raises StuckError if it will never start."""
        run = wait.get_run_with_retry(self.kfp, run_id)
        state = run.state or "PENDING"
        now = " ".join([state.lower(), *wait.tasks(run, "RUNNING")])
        if now != self.shown:
            self.shown = now
            print(f"{time.strftime('%H:%M:%S')} {now}", flush=True)
        if state not in wait.OVER and (why := self.pods.cannot_start(run_id)):
            raise StuckError(why)
        return state

    def until_over(self, run_id: str) -> Seen:
        for _ in self.until(f"the run {run_id} is not over"):
            if (state := self.look(run_id)) in wait.OVER:
                break
        notes = read_notes(self.work, run_id)
        tries = [len(note.tries) + 1 for note in notes if note.stage == "train"]
        return Seen(state, determine_outcome(notes, state).headline, max(tries, default=0))

    def terminate(self, run_id: str) -> None:
        with api_errors(self.kfp.host):
            self.kfp.runs.run_service_terminate_run(run_id)

    def delete_all(self) -> None:
        """What cannot be deleted is named, and does not keep the rest."""
        steps: list[Any] = [partial(self.stop_and_delete, run_id) for run_id in self.made]
        steps.append(partial(schedule.switch, self.kfp, "delete", self.name))
        if self.pipeline:
            pipelines = self.kfp.pipelines
            for version in self.kfp.versions(self.pipeline):
                number = version.pipeline_version_id
                steps.append(partial(pipelines.pipeline_service_delete_pipeline_version, self.pipeline, number))
            steps.append(partial(pipelines.pipeline_service_delete_pipeline, self.pipeline))
        steps.append(partial(self.kfp.experiments.experiment_service_delete_experiment, self.experiment))
        for step in steps:
            try:
                with api_errors(self.kfp.host):
                    step()
            except ValueError as error:
                print(f"could not be deleted ({step.func.__name__} of {self.name}): {error}")

    def stop_and_delete(self, run_id: str) -> None:
        if self.kfp.runs.run_service_get_run(run_id).state not in wait.OVER:
            with suppress(api.ApiException):
                self.kfp.runs.run_service_terminate_run(run_id)
        self.kfp.runs.run_service_delete_run(run_id)
