"""Runs on a Kubeflow Pipelines, started, disturbed, waited for and deleted."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import kfp_server_api as api

from must.base import storage
from must.runtime.notes import read_notes
from must.runtime.summary import determine_outcome
from must_pipeline.cluster.config import Cluster
from must_pipeline.schedule import Schedule, recurring_run
from must_pipeline.server import wait
from must_pipeline.server.api import Kfp, api_errors
from must_pipeline.server.parameters import check_parameters
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
    """Everything goes by one name: a pipeline, an experiment, runs, schedules and a folder."""

    def __init__(
        self, kfp: Kfp, pods: Pods, name: str, namespace: str, cluster: Cluster, place: str, longest: float
    ) -> None:
        """Args: `longest`: seconds a run may take."""
        self.kfp, self.pods, self.longest = kfp, pods, longest
        self.name, self.namespace, self.cluster, self.place = name, namespace, cluster, place
        self.work = storage.join(place, "work")
        self.experiment = kfp.experiment(name, namespace)
        self.pipeline = ""
        self.made: list[str] = []
        self.shown = ""

    def values(self, parameters: dict[str, Any], pipeline: Path) -> dict[str, Any]:
        demo = storage.join(self.place, "demo")
        found = {
            "source": f"{demo}/images/unlabeled", "test_source": f"{demo}/images/test", "labels": "folder",
            "classes": f"{demo}/classes.yaml", "model": f"{demo}/model", "pretrained": "", "model_name": "digits",
            "work_uri": self.work, **parameters,
        }  # fmt: skip
        check_parameters(pipeline, found)
        return found

    def start(self, pipeline: Path, parameters: dict[str, Any], name: str) -> str:
        values = self.values(parameters, pipeline)
        self.pipeline, version, _ = self.kfp.upload(pipeline, self.name, self.namespace)
        body = api.V2beta1Run(
            display_name=f"{self.name} {name}",
            experiment_id=self.experiment,
            pipeline_version_reference=api.V2beta1PipelineVersionReference(self.pipeline, version),
            runtime_config=api.V2beta1RuntimeConfig(parameters=values),
            service_account=self.cluster.service_account or None,
        )
        with api_errors(self.kfp.host):
            self.made.append(self.kfp.runs.run_service_create_run(body).run_id)
        return self.made[-1]

    def by_schedule(self, pipeline: Path, parameters: dict[str, Any]) -> str:
        """The first run of a schedule of every minute, which is then paused: Kubernetes deletes a schedule's workflows
        with it."""
        values = self.values(parameters, pipeline)
        self.pipeline, _, _ = self.kfp.upload(pipeline, self.name, self.namespace)
        wanted = Schedule(self.name, "0 * * * * *", parameters=values)
        body = recurring_run(wanted, self.experiment, self.pipeline, self.namespace, self.cluster.service_account)
        with api_errors(self.kfp.host):
            self.kfp.recurring.recurring_run_service_create_recurring_run(body)
        try:
            return self.first_of_schedule()
        finally:
            for schedule in self.kfp.schedules(self.namespace, self.name):
                with api_errors(self.kfp.host):
                    self.kfp.recurring.recurring_run_service_disable_recurring_run(schedule.recurring_run_id)

    def first_of_schedule(self) -> str:
        deadline = time.monotonic() + self.longest
        call = self.kfp.runs.run_service_list_runs
        while time.monotonic() < deadline:
            with api_errors(self.kfp.host):
                for run in self.kfp.pages(call, "runs", namespace=self.namespace):
                    if run.recurring_run_id and run.experiment_id == self.experiment and run.run_id not in self.made:
                        self.made.append(run.run_id)
                        return run.run_id
            time.sleep(wait.POLL)
        raise ValueError(f"the schedule {self.name} started no run in {self.longest:g} s")

    def trainings(self) -> set[str]:
        """Those that have a checkpoint. Each combination of data and settings has a folder of its own."""
        try:
            entries = list(storage.list_files(storage.join(self.work, "checkpoints")))
        except (FileNotFoundError, NotADirectoryError):
            return set()
        return {entry.name for entry in entries if entry.name.endswith("/LAST")}

    def until_checkpoint(self, run_id: str, before: set[str]) -> None:
        """So that what happens next happens in the middle of training. `before`: trainings() when the run began."""
        deadline = time.monotonic() + self.longest
        while not self.trainings() - before:
            if self.look(run_id) in wait.OVER:
                raise ValueError(f"the run {run_id} was over before its training had a checkpoint")
            if time.monotonic() > deadline:
                raise StuckError(f"the run {run_id} had no checkpoint after {self.longest:g} s")
            time.sleep(min(2.0, wait.POLL))

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
        deadline = time.monotonic() + self.longest
        while (state := self.look(run_id)) not in wait.OVER:
            if time.monotonic() > deadline:
                raise StuckError(f"{state}, not over after {self.longest:g} s")
            time.sleep(wait.POLL)
        notes = read_notes(self.work, run_id)
        tries = [len(note.tries) + 1 for note in notes if note.stage == "train"]
        return Seen(state, determine_outcome(notes, state).headline, max(tries, default=0))

    def terminate(self, run_id: str) -> None:
        with api_errors(self.kfp.host):
            self.kfp.runs.run_service_terminate_run(run_id)

    def delete_schedules(self) -> None:
        for schedule in self.kfp.schedules(self.namespace, self.name):
            self.kfp.recurring.recurring_run_service_delete_recurring_run(schedule.recurring_run_id)

    def delete_all(self) -> None:
        """What cannot be deleted is named, and does not keep the rest."""
        steps: list[tuple[str, Any]] = [("schedules", self.delete_schedules)]
        steps += [(f"run {run_id}", partial(self.stop_and_delete, run_id)) for run_id in self.made]
        if self.pipeline:
            for version in self.kfp.versions(self.pipeline):
                call, number = self.kfp.pipelines.pipeline_service_delete_pipeline_version, version.pipeline_version_id
                steps.append((f"version {number}", partial(call, self.pipeline, number)))
            steps.append(("pipeline", lambda: self.kfp.pipelines.pipeline_service_delete_pipeline(self.pipeline)))
        steps.append(("experiment", lambda: self.kfp.experiments.experiment_service_delete_experiment(self.experiment)))
        for what, step in steps:
            try:
                with api_errors(self.kfp.host):
                    step()
            except ValueError as error:
                print(f"could not be deleted: {what} of {self.name}: {error}")

    def stop_and_delete(self, run_id: str) -> None:
        if self.kfp.runs.run_service_get_run(run_id).state not in wait.OVER:
            with suppress(api.ApiException):
                self.kfp.runs.run_service_terminate_run(run_id)
        self.kfp.runs.run_service_delete_run(run_id)
