"""Checks a Kubeflow: runs the bundled digits through the ways a run can end; prints what was expected and was seen.

    make test-kfp KFP_HOST=http://localhost:8080 NAMESPACE=vision STORE=gs://my-bucket/must-check

It needs the images in a registry that the cluster pulls from (--cluster: the file that says so), and a place that both
this machine and the pods see (--store). Killing and deleting pods needs Kubernetes' own API, as kubectl is configured,
with the right to list, delete and exec pods; without it those cases are skipped. What it makes is deleted at the end.
"""

import argparse
import dataclasses
import re
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import kubernetes.client
import kubernetes.stream

from must.api.stages import call
from must.base import storage
from must.base.storage import list_names
from must.runtime.notes import read_notes
from must.runtime.summary import determine_outcome
from must_pipeline import schedule, submit
from must_pipeline.api import Kfp, api_errors, connect
from must_pipeline.cli import add_server
from must_pipeline.cluster import load_cluster
from must_pipeline.compile import compile_pipeline
from must_pipeline.submit import copy_run, make_run, start

KILL = """
import os, signal
for number in filter(str.isdigit, os.listdir("/proc")):
    try:
        with open(f"/proc/{number}/cmdline", "rb") as file:
            if b"-m\\0must.runtime.supervise" in file.read():
                os.kill(int(number), signal.SIGKILL)
                print("killed", number)
    except OSError:  # it has just ended
        pass
"""
SOON: Any = {"_request_timeout": 10}
LOST = "Run stopped from outside|Run failed: train: its pod is gone"  # where Argo does not repeat a pod that vanishes


@dataclass(frozen=True)
class Case:
    name: str
    expected: str  # what the page begins with
    parameters: dict[str, Any] = field(default_factory=dict)
    act: str = ""  # a method of Check, called when the run has a checkpoint; it may return the run to look at instead
    tries: int = 1  # of the training, at least
    state: str = "SUCCEEDED"  # or several, as in A|B
    after: str = ""  # the case without which this one would end otherwise
    nodes: int = 1
    scheduled: bool = False


def seed(number: int) -> dict[str, Any]:
    return {"settings": {"seed": number, "workers": 1}}


UNCHANGED = {"gate": "label-free", "settings": {"alpha": 0, "lr": 1e-12, "min_lr": 0.0}}  # no image changes its class
APPEND = {"only_new": True, "append": True}
CASES = (
    Case("promoted", "Promoted r0000-"),
    Case("zero-shot kept", "Kept zero-shot: .*nothing is promoted; the champion, r0000-", UNCHANGED, after="promoted"),
    Case("gate stopped", "Not promoted: stopped by the gate", {"gate": "labelled", "gate_settings": {"min_gain": 0.9}}),
    Case("nothing new", "Nothing new: ", APPEND, tries=0, after="promoted"),
    Case("wrong input", "Run failed: inputs: the input is wrong", {"model": "ViT-B-17"}, tries=0, state="FAILED"),
    Case("worker killed", "Promoted r0000-", seed(1), "kill_worker", tries=2),
    Case("pod deleted in training", "Promoted r0000-", seed(2), "delete", tries=2),
    Case("pod evicted in training", "Promoted r0000-", seed(5), "evict", tries=2),
    Case("two runs at once", "Promoted r0000-|Run stopped: another run, ", seed(6), "repeat", state="SUCCEEDED|FAILED"),
    Case("terminated", f"{LOST}|Run broken off", seed(3), "terminate", state="FAILED|CANCELED"),
    Case("two nodes", "Promoted r0000-", seed(4), nodes=2),
    Case("schedule of a minute", "Nothing new: ", APPEND, tries=0, scheduled=True, after="promoted"),
)


class Check:
    """One case after the other. All have one place, pipeline and experiment, which go by one name."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.cluster, self.kfp, self.folder = load_cluster(options.cluster), Kfp(options), folder
        self.name = f"must-check-{uuid.uuid4().hex[:6]}"
        store = options.store if storage.is_remote(options.store) else str(Path(options.store).resolve())
        self.place = storage.join(store, self.name)
        self.work, self.namespace = storage.join(self.place, "work"), self.kfp.namespace or "kubeflow"
        self.experiment = self.kfp.experiment(self.name)
        self.extensions = connect()
        self.core = kubernetes.client.CoreV1Api()  # as connect() has configured it

    def try_case(self, case: Case) -> tuple[str, str]:
        """The first line of the page, and ok or WRONG."""
        values = {"preset": "digits", "epochs": 2, "gate": "none", **case.parameters}  # gate none: two epochs are few
        values["settings"] = {"checkpoint_seconds": 5, **values.get("settings", {})}
        if case.act:  # it must take minutes
            values["epochs"] = 200 if self.cluster.uses_gpu("train") else 80
        before, run_id = self.trainings(), self.start(case, values)
        while case.act and not self.trainings() - before:
            if self.state(run_id) in submit.OVER:
                return "over before its training had a checkpoint", "WRONG"
            time.sleep(2)
        last = (getattr(self, case.act)(run_id) if case.act else "") or run_id
        for each in dict.fromkeys((run_id, last)):
            submit.wait(self.kfp, each, self.work, "")
        notes, state = read_notes(self.work, last), self.state(last)
        line = determine_outcome(notes, state).headline
        tries = max([len(note.tries) + 1 for note in notes if note.stage == "train"], default=0)
        fits = state in case.state.split("|") and tries >= case.tries and re.match(case.expected, line)
        if not fits and case.act in ("delete", "evict") and state == "FAILED" and not self.repeats_lost_pods():
            line, fits = f"{line} (so it may: deploy/argo-retries.yaml is not applied)", re.match(LOST, line)
        return line, "ok" if fits else "WRONG"

    def start(self, case: Case, parameters: dict[str, Any]) -> str:
        """The new run's id; of a schedule of every minute the first one's."""
        demo, file = storage.join(self.place, "demo"), self.folder / f"nodes-{case.nodes}.yaml"
        if not file.exists():
            as_ = "trainjob" if case.nodes > 1 else self.cluster.training.as_
            training = dataclasses.replace(self.cluster.training, nodes=case.nodes, as_=as_)
            compile_pipeline(dataclasses.replace(self.cluster, training=training), file)
        values = {
            "source": f"{demo}/images/unlabeled", "test_source": f"{demo}/images/test", "labels": "folder",
            "classes": f"{demo}/classes.yaml", "model": f"{demo}/model", "model_name": "digits",
            "work_uri": self.work, **parameters,
        }  # fmt: skip
        if case.scheduled:
            weekly = schedule.RecurringRun(self.name, "0 * * * * *", self.name, self.name, parameters=values)
            schedule.apply(self.kfp, weekly, file)
            while not (begun := [run for run in self.list_runs() if run.recurring_run_id]):
                time.sleep(submit.POLL)
            schedule.switch(self.kfp, "pause", self.name)  # deleted later: Kubernetes deletes its workflows with it
            return str(begun[0].run_id)
        body = make_run(self.kfp, file, self.name, self.name, values)
        body.display_name = f"{self.name} {case.name}"
        return start(self.kfp, body)

    def list_runs(self) -> list[Any]:
        with api_errors(self.kfp.host):
            runs = self.kfp.pages(self.kfp.runs.run_service_list_runs, "runs")
            return [run for run in runs if run.experiment_id == self.experiment]

    def state(self, run_id: str) -> str:
        return submit.get_run_with_retry(self.kfp, run_id).state or "PENDING"

    def trainings(self) -> set[str]:
        """Those that have a checkpoint. Each combination of data and settings has a folder of its own."""
        names = [entry.name for entry in storage.list_existing(storage.join(self.work, "checkpoints"))]
        return {name for name in names if name.endswith("/LAST")}

    # -- what is done to a run, through Kubernetes' own API

    def why_not(self, case: Case) -> str:
        """Why a case cannot be tried in this cluster; '' if it can."""
        if case.tries > 1 and not self.cluster.retries.count:
            return "cluster.yaml's retries.count is 0"
        try:
            if case.nodes > 1:
                self.extensions.get_api_resources("trainer.kubeflow.org", "v1alpha1", **SOON)
            elif case.act not in ("", "terminate", "repeat"):
                self.pods("none")
        except Exception as error:  # no configuration, not installed, or no right to look
            what = "Kubeflow Trainer" if case.nodes > 1 else f"pods of {self.namespace}"
            return f"no access to {what} from here, as kubectl is configured ({type(error).__name__})"
        return ""

    def pods(self, run_id: str) -> list[Any]:
        selector = f"pipeline/runid={run_id}"
        return list(self.core.list_namespaced_pod(self.namespace, label_selector=selector, **SOON).items)

    def training(self, run_id: str) -> str:
        """The name of the run's training pod."""
        for pod in self.pods(run_id):
            node = (pod.metadata.annotations or {}).get("workflows.argoproj.io/node-name", "")
            if re.search(r"\.train(\(\d+\))?\.executor", node) and pod.status.phase == "Running":
                return pod.metadata.name
        raise ValueError(f"the run {run_id} has no training pod")

    def repeats_lost_pods(self) -> bool:
        """Whether Argo has the setting of deploy/argo-retries.yaml; False also where it cannot be read."""
        try:
            settings = self.core.read_namespaced_config_map("workflow-controller-configmap", "kubeflow", **SOON).data
        except Exception:  # no right to look, or installed elsewhere
            return False
        return "lastRetry.message matches" in (settings or {}).get("workflowDefaults", "")

    def kill_worker(self, run_id: str) -> None:
        """SIGKILL to the process below the one that supervises it."""
        more: Any = {"container": "main", "command": ["python3", "-c", KILL], "stdout": True, "stderr": True}
        connect_exec = self.core.connect_get_namespaced_pod_exec
        said = kubernetes.stream.stream(connect_exec, self.training(run_id), self.namespace, **more)
        if "killed" not in said:
            raise ValueError(f"no process of the training found: {said[:200]}")

    def delete(self, run_id: str) -> None:
        self.core.delete_namespaced_pod(self.training(run_id), self.namespace)

    def evict(self, run_id: str) -> None:
        """Through Kubernetes' Eviction API, as draining a node does. The kubelet's own cannot be asked for."""
        body = {"metadata": {"name": (name := self.training(run_id)), "namespace": self.namespace}}
        self.core.create_namespaced_pod_eviction(name, self.namespace, body)

    def terminate(self, run_id: str) -> None:
        with api_errors(self.kfp.host):
            self.kfp.runs.run_service_terminate_run(run_id)

    def repeat(self, run_id: str) -> str:
        body = copy_run(self.kfp, run_id)
        body.display_name = f"{self.name} the same beside it"
        return start(self.kfp, body)

    # -- before and after

    def upload_data(self) -> None:
        """The bundled digits, few of them: images, class names and the tiny CLIP."""
        if not storage.is_remote(self.place):  # on a volume pods write there, as another user than this one
            for made in (Path(self.place), Path(self.work)):
                made.mkdir(parents=True, exist_ok=True)
                made.chmod(0o2777)
        call("demo", output=(demo := str(self.folder / "demo")))
        names = sorted(list_names(demo))
        images = [name for name in names if name.endswith(".png")]
        for name in {*names} - {*images} | {*images[::3]}:
            storage.upload(Path(demo, name), storage.join(self.place, "demo", name))

    def delete_all(self) -> None:
        """What cannot be deleted is named, and does not keep the rest."""
        kfp, steps = self.kfp, list[Any]()
        for run in self.list_runs():
            steps += [partial(self.terminate, run.run_id)] * (run.state not in submit.OVER)
            steps.append(partial(kfp.runs.run_service_delete_run, run.run_id))
        steps.append(partial(schedule.switch, kfp, "delete", self.name))
        pipeline, delete = kfp.pipeline(self.name), kfp.pipelines.pipeline_service_delete_pipeline_version
        steps += [partial(delete, pipeline, version.pipeline_version_id) for version in kfp.versions(pipeline)]
        steps.append(partial(kfp.pipelines.pipeline_service_delete_pipeline, pipeline))
        steps.append(partial(kfp.experiments.experiment_service_delete_experiment, self.experiment))
        steps.append(partial(storage.delete_folder, self.place))
        for step in steps:
            try:
                with api_errors(kfp.host):
                    step()
            except (ValueError, OSError) as error:
                print(f"could not be deleted ({step.func.__name__} of {self.name}): {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known, store = ", ".join(case.name for case in CASES), "build/kfp-check"
    parser.add_argument("--store", default=store, metavar="URI", help=f"gs://... or a path [{store}]")
    parser.add_argument("--only", default="", metavar="NAME,...", help=f"of: {known}")
    parser.add_argument("--keep", action="store_true", help="delete nothing")
    add_server(parser)
    options = parser.parse_args()
    names = {name.strip() for name in options.only.split(",") if name.strip()}
    if unknown := names - {case.name for case in CASES}:
        parser.error(f"--only: no case '{min(unknown)}'; there are: {known}")
    names |= {case.after for case in CASES if case.name in names}
    try:
        with tempfile.TemporaryDirectory() as folder:
            run(Check(options, Path(folder)), [case for case in CASES if not names or case.name in names], options.keep)
    except ValueError as error:
        print(f"test-kfp: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def run(check: Check, cases: list[Case], keep: bool) -> None:
    """Exits with 1 if a case that could be tried did not end as expected."""
    rows = [("case", "expected", "seen", "")]
    try:
        check.upload_data()
        for case in cases:
            print(f"-- {case.name}", flush=True)
            if why := check.why_not(case):
                rows.append((case.name, case.expected, f"not tried: {why}", ""))
                continue
            try:
                seen, verdict = check.try_case(case)
            except Exception as error:  # the API servers', the store's, a websocket's
                seen, verdict = " ".join(f"{type(error).__name__}: {error}".split())[:300], "WRONG"
            rows.append((case.name, case.expected, seen, verdict))
    finally:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        print("", *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows), "", sep="\n", flush=True)
        if not keep:
            check.delete_all()
    raise SystemExit(int(any(row[-1] == "WRONG" for row in rows)))


if __name__ == "__main__":
    main()
