"""Checks a Kubeflow: runs the bundled digits through the ways a run can end; prints what was expected and was seen.

    make test-kfp KFP_HOST=http://localhost:8080 STORE=gs://my-bucket/must-check CLUSTER=my-cluster.yaml

It needs the images in a registry that the cluster pulls from (--cluster: the file that says so), and a place that both
this machine and the pods see (--store). What it makes is deleted at the end.
"""

import argparse
import re
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from must.api.run import run as run_stage
from must.base import storage
from must.base.storage import list_names
from must.pods.notes import read_notes
from must.pods.summary import determine_outcome
from must_pipeline import schedule, submit
from must_pipeline.client import Kubeflow
from must_pipeline.cluster import ClusterConfig, load_cluster
from must_pipeline.compile import compile_pipeline


@dataclass(frozen=True)
class Case:
    name: str
    expected: str  # what the page begins with
    parameters: dict[str, Any] = field(default_factory=dict)
    act: str = ""  # a method of Check, called when the run has a checkpoint; it may return the run to look at instead
    state: str = "SUCCEEDED"  # or several, as in A|B
    nodes: int = 1


def seed(number: int) -> dict[str, Any]:
    return {"settings": {"seed": number, "workers": 1}}


APPEND = {"only_new": True, "append": True}
CASES = (
    Case("promoted", "Promoted r0000-"),
    Case("gate stopped", "Not promoted: stopped by the gate", {"gate": "labelled", "gate_settings": {"min_gain": 0.9}}),
    Case("nothing new", "Nothing new: ", APPEND),
    Case("wrong input", "Run failed: inputs: the input is wrong", {"model": "ViT-B-17"}, state="FAILED"),
    Case("two runs at once", "Promoted r0000-|Run stopped: another run, ", seed(6), "repeat", "SUCCEEDED|FAILED"),
    Case(
        "terminated",
        "Run stopped from outside|Run failed: train: its pod is gone|Run broken off",
        seed(3),
        "terminate",
        "FAILED|CANCELED",
    ),
    Case("two nodes", "Promoted r0000-", seed(4), nodes=2),
    Case("schedule of a minute", "Nothing new: ", APPEND, "schedule"),
)


class Check:
    """One case after the other. All have one place, pipeline and experiment, which go by one name."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.cluster = load_cluster(options.cluster) if options.cluster else ClusterConfig()
        self.kubeflow, self.options, self.folder = Kubeflow(options, self.cluster.namespace), options, folder
        self.name = f"must-check-{uuid.uuid4().hex[:6]}"
        store = options.store if storage.is_remote(options.store) else str(Path(options.store).resolve())
        self.place = storage.join(store, self.name)
        self.work = storage.join(self.place, "work")
        self.experiment = submit.find_experiment(self.kubeflow, self.name)

    def try_case(self, case: Case) -> tuple[str, str]:
        """The first line of the page, and ok or WRONG."""
        values = {"preset": "digits", "epochs": 2, "gate": "none", **case.parameters}  # gate none: two epochs are few
        values["settings"] = {"checkpoint_seconds": 5, **values.get("settings", {})}
        body = self.make_body(case, values | ({"epochs": 200} if case.act not in ("", "schedule") else {}))
        if case.act == "schedule":
            last = self.schedule(body)
        else:
            before = self.trainings()
            last = submit.start_run(self.kubeflow, body, f"{self.name} {case.name}").run_id
            while case.act and not self.trainings() - before:
                if self.kubeflow.ask("get_run", run_id=last).state in schedule.OVER:
                    return "over before its training had a checkpoint", "WRONG"
                time.sleep(2)
            first, last = last, (getattr(self, case.act)(last) if case.act else "") or last
            submit.follow_run(self.kubeflow, first)
        submit.follow_run(self.kubeflow, last)
        notes, state = read_notes(self.work, last), self.kubeflow.ask("get_run", run_id=last).state
        line = determine_outcome(notes).headline
        return line, "ok" if state in case.state.split("|") and re.match(case.expected, line) else "WRONG"

    def make_body(self, case: Case, parameters: dict[str, Any]) -> dict[str, Any]:
        demo, file = storage.join(self.place, "demo"), self.folder / f"nodes-{case.nodes}.yaml"
        if not file.exists():
            as_ = "trainjob" if case.nodes > 1 else self.cluster.training.as_
            training = replace(self.cluster.training, nodes=case.nodes, as_=as_)
            compile_pipeline(replace(self.cluster, training=training), file)
        values = {
            "source": f"{demo}/images/unlabeled", "test_source": f"{demo}/images/test", "labels": "folder",
            "classes": f"{demo}/classes.yaml", "model": f"{demo}/model", "model_name": "digits",
            "work_uri": self.work, **parameters,
        }  # fmt: skip
        uploaded = submit.upload(self.kubeflow, argparse.Namespace(pipeline=file), self.name)
        account = self.cluster.service_account or None
        return uploaded | {"params": values, "experiment_id": self.experiment, "service_account": account}

    def trainings(self) -> set[str]:
        """Those that have a checkpoint. Each combination of data and settings has a folder of its own."""
        names = [entry.name for entry in storage.list_existing(storage.join(self.work, "checkpoints"))]
        return {name for name in names if name.endswith("/LAST")}

    # -- what is done to a run

    def terminate(self, run_id: str) -> None:
        self.kubeflow.ask("terminate_run", run_id=run_id)

    def repeat(self, run_id: str) -> str:
        return str(submit.repeat_run(self.kubeflow, run_id, f"{self.name} beside it").run_id)

    def schedule(self, body: dict[str, Any]) -> str:
        """The first run of a schedule of each minute, which is then paused: deleting it would end the run."""
        schedule.make_schedule(self.kubeflow, self.name, "* * * * *", body)
        while not (begun := [run for run in self.list_runs() if run.recurring_run_id]):
            time.sleep(submit.POLL)
        schedule.list_schedules(self.kubeflow, self.name, remove=True)
        return str(begun[0].run_id)

    def list_runs(self) -> list[Any]:
        return list(self.kubeflow.list("runs", experiment_id=self.experiment))

    # -- before and after

    def upload_data(self) -> None:
        """The bundled digits, few of them: images, class names and the tiny CLIP."""
        if not storage.is_remote(self.place):  # on a volume pods write there, as another user than this one
            for made in (Path(self.place), Path(self.work)):
                made.mkdir(parents=True, exist_ok=True)
                made.chmod(0o2777)
        run_stage("demo", output=(demo := str(self.folder / "demo")))
        names = sorted(list_names(demo))
        images = [name for name in names if name.endswith(".png")]
        for name in {*names} - {*images} | {*images[::3]}:
            storage.upload(Path(demo, name), storage.join(self.place, "demo", name))

    def delete_all(self) -> None:
        """What cannot be deleted is named, and does not keep the rest."""
        ask, steps = self.kubeflow.ask, list[Callable[[], Any]]()
        for run in self.list_runs():
            steps += [partial(ask, "terminate_run", run_id=run.run_id)] * (run.state not in schedule.OVER)
            steps.append(partial(ask, "delete_run", run_id=run.run_id))
        steps.append(partial(schedule.list_schedules, self.kubeflow, self.name, remove=True))
        for pipeline in self.kubeflow.list("pipelines", namespace=self.kubeflow.namespace):
            if pipeline.display_name == self.name:
                where = {"pipeline_id": pipeline.pipeline_id}
                versions = self.kubeflow.list("pipeline_versions", **where)
                ids = [version.pipeline_version_id for version in versions]
                steps += [partial(ask, "delete_pipeline_version", pipeline_version_id=one, **where) for one in ids]
                steps.append(partial(ask, "delete_pipeline", **where))
        steps.append(partial(ask, "delete_experiment", experiment_id=self.experiment))
        steps.append(partial(storage.delete_folder, self.place))
        for step in steps:
            try:
                step()
            except (ValueError, OSError) as error:
                print(f"could not be deleted: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known, store = ", ".join(case.name for case in CASES), "build/kfp-check"
    parser.add_argument("--store", default=store, metavar="URI", help=f"gs://... or a path [{store}]")
    parser.add_argument(
        "--only", default="", metavar="NAME,...", help=f"of: {known}; the first one comes before others"
    )
    parser.add_argument("--keep", action="store_true", help="delete nothing")
    parser.add_argument("--host", required=True, help="the URL of Kubeflow Pipelines")
    for flag in ("--cluster", "--client"):
        parser.add_argument(flag, type=Path, metavar="FILE", help="as for must-pipeline submit")
    options = parser.parse_args()
    names = {name.strip() for name in options.only.split(",") if name.strip()}
    if unknown := names - {case.name for case in CASES}:
        parser.error(f"--only: no case '{min(unknown)}'; there are: {known}")
    cases = [case for case in CASES if not names or case.name in {*names, "promoted"}]
    rows = [("case", "expected", "seen", "")]
    with tempfile.TemporaryDirectory() as folder:
        check = Check(options, Path(folder))
        try:
            check.upload_data()
            for case in cases:
                print(f"-- {case.name}", flush=True)
                try:
                    seen, verdict = check.try_case(case)
                except Exception as error:  # the API servers', or the store's
                    seen, verdict = " ".join(f"{type(error).__name__}: {error}".split())[:300], "WRONG"
                rows.append((case.name, case.expected, seen, verdict))
        finally:
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            print("", *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows), "", sep="\n", flush=True)
            if not options.keep:
                check.delete_all()
    sys.exit(int(any(row[-1] == "WRONG" for row in rows)))


if __name__ == "__main__":
    main()
