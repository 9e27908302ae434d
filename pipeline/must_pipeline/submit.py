"""must-pipeline submit: starts one run, of a file of parameters or the same as a run before, and waits for its end.

Parameters are checked against the compiled pipeline before anything is submitted."""

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import convert, read_mapping, require
from must.base.text import make_printable, remove_secrets, suggest_name
from must.runtime.check import check_labelling, check_run
from must.runtime.summary import Summary, summarize
from must_components.cluster import is_refused, list_failures
from must_pipeline.api import Kfp, api, api_errors, connect
from must_pipeline.files import load_documents, name_pipeline

LIMIT = 10_000  # bytes of all parameters together, in Kubeflow Pipelines
KINDS: dict[str, Any] = {
    "STRING": str, "NUMBER_INTEGER": int, "NUMBER_DOUBLE": float, "BOOLEAN": bool, "STRUCT": dict[str, Any],
    "LIST": list[Any],
}  # fmt: skip


def check_parameters(pipeline: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The values, converted to their parameters' types. Raises ValueError: pipeline or stage would refuse them."""
    try:
        spec = load_documents(pipeline.read_text())[0]
        known = spec["root"]["inputDefinitions"]["parameters"]
    except FileNotFoundError:
        raise UserError(f"--pipeline {pipeline}: no such file; make it with must-pipeline compile") from None
    except (yaml.YAMLError, KeyError, TypeError, IndexError):
        raise UserError(f"--pipeline {pipeline}: is no compiled pipeline") from None
    for name in values:
        if name not in known:
            raise UserError(f"the pipeline has no parameter '{name}'; {suggest_name(name, sorted(known))}")
    values = {
        name: convert(value, KINDS[known[name]["parameterType"]], f"parameter {name}") for name, value in values.items()
    }
    missing = sorted(name for name in known.keys() - values.keys() if not known[name].get("isOptional"))
    require(not missing, f"parameters missing: {', '.join(missing)}")
    if (size := len(json.dumps(values).encode())) > LIMIT:
        raise UserError(f"the parameters take {size:,} bytes, Kubeflow Pipelines allows {LIMIT:,}; use a file by URI")
    defaults = {name: each["defaultValue"] for name, each in known.items() if "defaultValue" in each}
    (check_labelling if "least_similarity" in known else check_run)(defaults | values)
    return values


OVER = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
GOOD = ("SUCCEEDED", "SKIPPED")
POLL = 15.0  # seconds
FAILURES_REPORTED = 3  # failures of one stage after which a line is printed
WATCH_TIMEOUT = 10  # seconds for an answer of Kubernetes' API
SERVER_TIMEOUT = 900.0  # seconds without an answer after which waiting is given up
FRAMES = re.compile(  # tasks that only wrap stages
    r"executor|root|(exit-handler|condition|condition-branches|for-loop)-\d+(\.onExit)?|iteration-(iterations|item)|must-[a-z0-9]{5}"
)


class Ending(NamedTuple):
    code: int  # 0, or 1 for a run that failed or whose workflow is gone
    lost: bool = False  # it was stopped from outside, but not by a person: it may be started again


def wait(kfp: Kfp, run_id: str, work_uri: str, again: str) -> Ending:
    """How the run ended, once it is over. Raises TransientError: no answer for SERVER_TIMEOUT seconds.

    The notes of the stages at `work_uri` are summarized if this machine can read them. `again` starts the run again."""
    kubernetes, printed, missed, reported = connect(), "", 0, set[str]()
    latest: dict[str, Any] = {}  # the workflow as it was read last
    while True:
        run = get_run_with_retry(kfp, run_id)
        state = run.state or "PENDING"
        # Kubeflow has a step of its own before each stage.
        coming = (name.removesuffix("-driver") for name in list_stages(run, "RUNNING"))
        status = " ".join([state.lower(), *dict.fromkeys(name for name in coming if not FRAMES.fullmatch(name))])
        if status != printed:
            printed = status
            say(status)
        workflow = find_workflow(kubernetes, kfp.namespace or "kubeflow", run_id)
        latest = workflow or latest
        if state in OVER:
            summary = summarize(work_uri, run_id, state, again)
            report(run, state, summary, list_failures(latest))
            lost = summary.failure in ("stopped", "silent") and not is_terminated(run)
            return Ending(int(state not in GOOD), state not in GOOD and lost)
        missed, trouble = missed + 1 if latest and workflow == {} else 0, ""
        if (stage := report_failures(run, latest, reported)) is not None:
            trouble = (
                f"this run cannot succeed: Kubernetes rejects the pods of {stage}; retries may last hours. "
                "Correct it, terminate the run in Kubeflow's page, and start it again"
            )
        elif missed > 1:  # at first the run's last state may not have arrived yet
            trouble = (
                f"the workflow of the run {run_id} was deleted: Kubeflow keeps the state {state.lower()}. "
                "Start it again"
            )
        if trouble:
            print(f"{trouble}: {again}", file=sys.stderr)
            return Ending(1)
        time.sleep(POLL)


def get_run_with_retry(kfp: Kfp, run_id: str) -> Any:
    """The run; repeats the request until the server answers."""

    def ask() -> Any:
        with api_errors(kfp.host):
            return kfp.runs.run_service_get_run(run_id)

    return storage.repeat(kfp.host, ask, timeout=SERVER_TIMEOUT)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def report_failures(run: Any, workflow: dict[str, Any], reported: set[str]) -> str | None:
    """Prints once for each stage that it has failed for the third time, and why (unknown without permission to read the
    workflow). Returns a stage that can never start."""
    tries = [re.sub(r"\(\d+\)$", "", name) for name in list_tasks(run, "FAILED") if name.endswith(")")]
    stages = list_failures(workflow) or {name: [""] * tries.count(name) for name in tries if not FRAMES.fullmatch(name)}
    for stage, messages in stages.items():
        if len(messages) >= FAILURES_REPORTED and stage not in reported:
            reported.add(stage)
            reason = messages[-1] or "the workflow's events say why (kubectl describe workflow)"
            say(f"{stage} failed {len(messages)} times: {make_printable(reason, 1000)}")
            if is_refused(reason):
                return stage
    return None


def report(run: Any, state: str, summary: Summary, messages: dict[str, list[str]]) -> None:
    """Prints how the run ended; without notes that can be read, what the server says."""
    if state not in GOOD:
        if is_terminated(run):
            print("the run was ended by a person")
        elif not summary.table:
            print(f"failed: {', '.join(list_stages(run, 'FAILED')) or 'no stage has begun'}")
            for stage, reasons in messages.items():
                print(f"{stage}: {make_printable(reasons[-1], 1000)}")
    page = summary.to_text() if summary.table else "The page about it is the artifact of the stage summary."
    print(f"\n{page}", flush=True)


def is_terminated(run: Any) -> bool:
    return any(entry.state in ("CANCELING", "CANCELED") for entry in run.state_history or [])


def list_tasks(run: Any, state: str) -> list[str]:
    """Kubeflow's names of the tasks in that state; of the tries of a repeated step NAME(0), NAME(1), ..."""
    details = (run.run_details and run.run_details.task_details) or []
    return [task.display_name for task in details if task.state == state]


def list_stages(run: Any, state: str) -> list[str]:
    """The stages, and Kubeflow's own steps before them, without the tasks that wrap them, and without tries."""
    names = dict.fromkeys(list_tasks(run, state))
    return [name for name in names if not FRAMES.fullmatch(name) and not name.endswith(")")]


def find_workflow(kubernetes: Any, namespace: str, run_id: str) -> dict[str, Any] | None:
    """The run's workflow, by Kubernetes' API of `connect`: Kubeflow Pipelines reports neither its deletion nor why its
    pods fail. {}: there is none, perhaps as this is another cluster; None: there is no answer, or no permission."""
    if kubernetes is None:
        return None
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        items = kubernetes.list_namespaced_custom_object(
            "argoproj.io", "v1alpha1", namespace, "workflows", label_selector=f"pipeline/runid={run_id}",
            _request_timeout=WATCH_TIMEOUT,
        )["items"]  # fmt: skip
    except (ApiException, HTTPError, OSError):
        return None
    return next(iter(items), {})


def main(options: argparse.Namespace) -> None:
    raise SystemExit(submit(options))


def submit(options: argparse.Namespace) -> int:
    """Returns the exit code: 0, or 1 for a run that was waited for and failed."""
    require(options.restarts >= 0, f"--restarts {options.restarts}: must not be negative")
    kfp = Kfp(options)
    pipeline_name = options.pipeline_name or (name_pipeline(options.pipeline) if not options.again else "must")
    if options.again:
        body = copy_run(kfp, options.again)
    else:
        parameters = read_mapping(options.parameters, f"--parameters {options.parameters}")
        body = make_run(kfp, options.pipeline, pipeline_name, options.experiment, parameters)
    body.display_name = options.name or f"{pipeline_name} {time.strftime('%Y-%m-%d %H:%M')}"
    run_id = start(kfp, body)
    if not options.wait:
        return 0
    work_uri = ((body.runtime_config and body.runtime_config.parameters) or {}).get("work_uri", "")
    for restarts in range(options.restarts, -1, -1):
        ending = wait(kfp, run_id, work_uri, f"must-pipeline submit --again {run_id}")
        if not (ending.lost and restarts):
            break
        restarted = copy_run(kfp, run_id)
        restarted.display_name = f"{body.display_name} again"
        print(f"the run {run_id} was stopped, but not by a person: starting it again ({restarts} restarts left)")
        run_id = start(kfp, restarted)
    return ending.code


def make_run(kfp: Kfp, file: Path, pipeline_name: str, experiment_name: str, parameters: dict[str, Any]) -> Any:
    """A run of the compiled pipeline `file`, which is uploaded if it is new."""
    parameters = check_parameters(file, parameters)
    experiment = kfp.experiment(experiment_name)
    pipeline, version, new = kfp.upload(file, pipeline_name)
    print(f"pipeline {pipeline_name}: {'new version uploaded' if new else 'this version is there already'}")
    return api.V2beta1Run(
        experiment_id=experiment,
        pipeline_version_reference=api.V2beta1PipelineVersionReference(pipeline, version),
        runtime_config=api.V2beta1RuntimeConfig(parameters=parameters),
        service_account=kfp.account or None,
    )


def start(kfp: Kfp, body: Any) -> str:
    """The new run's id."""
    with api_errors(kfp.host, body.service_account or "", kfp.namespace):
        run = kfp.runs.run_service_create_run(body)
    print(f"run {run.run_id} started: {remove_secrets(kfp.host)}/#/runs/details/{run.run_id}", flush=True)
    return str(run.run_id)


def copy_run(kfp: Kfp, run_id: str) -> Any:
    with api_errors(kfp.host):
        old = kfp.runs.run_service_get_run(run_id)
    return api.V2beta1Run(
        experiment_id=old.experiment_id,
        pipeline_version_reference=old.pipeline_version_reference,
        pipeline_spec=None if old.pipeline_version_reference else old.pipeline_spec,
        runtime_config=old.runtime_config,
        service_account=old.service_account,
    )
