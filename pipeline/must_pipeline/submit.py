"""must-pipeline submit: starts a run of a file of parameters, the same run again, or a schedule; follows a run."""

import argparse
import time
from functools import partial
from hashlib import sha256
from typing import Any

from must import __version__
from must.base import storage
from must.base.errors import UserError
from must.base.parameters import read_mapping, require
from must.pods.summary import summarize
from must.table import COMPONENTS
from must_pipeline import DESCRIPTION
from must_pipeline.client import Kubeflow
from must_pipeline.cluster import ClusterConfig
from must_pipeline.compile import check_parameters, identify_cluster, read_compiled, warn_of_images
from must_pipeline.schedule import OVER, find_next_time, list_schedules, make_schedule

POLL = 15.0  # seconds
PATIENCE = 900.0  # seconds without an answer after which a run is not followed any more
STAGES = {row.title or name for name, row in COMPONENTS.items()}  # other tasks are Kubeflow's own, around them


def main(options: argparse.Namespace) -> None:
    """Raises SystemExit: 1 for a run that was followed and failed."""
    one = not (options.again or options.wait) or not options.cron
    require(one, "--cron makes a schedule; --again and --wait are for one run")
    other = bool(options.again and options.parameters)
    require(not other, "--again takes the parameters of that run: leave --parameters out, or --again")
    if options.again:
        kubeflow = Kubeflow(options)
        run = repeat_run(kubeflow, options.again, options.name)
    else:
        compiled = read_compiled(options.pipeline, options.cluster)
        if options.cron in ("list", "off"):
            list_schedules(Kubeflow(options, compiled.cluster["namespace"]), options.name, options.cron == "off")
            return
        if not options.parameters:
            raise UserError("--parameters is missing: the file that says what a run is to do; or --again RUN_ID")
        values = read_mapping(options.parameters, f"--parameters {options.parameters}")
        if compiled.cluster == identify_cluster(ClusterConfig()):  # without --cluster
            warn_of_images(options.pipeline)
        body: dict[str, Any] = {"params": check_parameters(compiled, values)}
        if options.cron:
            require(bool(options.name), "--name is missing: the schedule's, by which it is known")
            find_next_time(options.cron)
        kubeflow = Kubeflow(options, compiled.cluster["namespace"])
        body["experiment_id"] = find_experiment(kubeflow, options.experiment)
        body |= {"service_account": compiled.cluster["service_account"] or None}
        body |= upload(kubeflow, options, compiled.name)
        if options.cron:
            make_schedule(kubeflow, options.name, options.cron, body)
            return
        run = start_run(kubeflow, body, options.name or f"{compiled.name} {time.strftime('%Y-%m-%d %H:%M')}")
    if options.wait:
        raise SystemExit(follow_run(kubeflow, run.run_id))


def find_experiment(kubeflow: Kubeflow, name: str) -> str:
    """The id; the experiment is made if there is none. Raises ValueError: the server does not know namespaces."""
    space = kubeflow.namespace
    found = kubeflow.ask("create_experiment", name=name, description=DESCRIPTION, namespace=space)
    require(
        not space or bool(found.namespace),
        f"namespace {space}: this Kubeflow Pipelines is installed for a single user and runs everything in its own "
        "namespace; leave `namespace` out of cluster.yaml, and create the service account there",
    )
    return str(found.experiment_id)


def upload(kubeflow: Kubeflow, options: argparse.Namespace, name: str) -> dict[str, str]:
    """The pipeline `name` and its version with the file's content, which is uploaded if there is none: their ids."""
    space = kubeflow.namespace
    pipelines = kubeflow.list("pipelines", namespace=space)
    pipeline = next((one for one in pipelines if one.display_name == name), None)
    if pipeline is None:
        body = {"name": name, "display_name": name, "description": DESCRIPTION} | (
            {"namespace": space} if space else {}
        )
        pipeline = kubeflow.ask("pipelines.pipeline_service_create_pipeline", pipeline=body)
    version = f"{__version__}-{sha256(options.pipeline.read_bytes()).hexdigest()[:12]}"
    versions = kubeflow.list("pipeline_versions", pipeline_id=pipeline.pipeline_id)
    made = next((one for one in versions if one.display_name == version), None)
    state = "is there already" if made else "uploaded"
    made = made or kubeflow.ask(
        "upload_pipeline_version", pipeline_package_path=str(options.pipeline), pipeline_version_name=version,
        pipeline_id=pipeline.pipeline_id, description=DESCRIPTION,
    )  # fmt: skip
    print(f"pipeline {name}: version {version} {state}")
    return {"pipeline_id": pipeline.pipeline_id, "version_id": made.pipeline_version_id}


def start_run(kubeflow: Kubeflow, body: dict[str, Any], name: str) -> Any:
    run = kubeflow.ask("run_pipeline", job_name=name, **body)
    print(f"run {run.run_id} started: {kubeflow.host}/#/runs/details/{run.run_id}", flush=True)
    return run


def repeat_run(kubeflow: Kubeflow, run_id: str, name: str) -> Any:
    """Starts a run with the version, the parameters and the account of another."""
    old = kubeflow.ask("get_run", run_id=run_id)
    version = old.pipeline_version_reference
    require(version is not None, f"--again {run_id}: it is no run of an uploaded pipeline")
    body = {"experiment_id": old.experiment_id, "params": old.runtime_config.parameters}
    body |= {"pipeline_id": version.pipeline_id, "version_id": version.pipeline_version_id}
    body |= {"service_account": old.service_account}
    return start_run(kubeflow, body, name or f"{old.display_name.removesuffix(' again')} again")


def follow_run(kubeflow: Kubeflow, run_id: str) -> int:
    """Prints the stages as they run, at the end the summary, if the notes at work_uri can be read from here.
    Returns the exit code: 0, or 1 for a run that failed. Raises TransientError: no answer for PATIENCE seconds."""
    said, state = "", ""
    while state not in OVER:
        time.sleep(POLL if said else 0)
        run = storage.repeat(kubeflow.host, partial(kubeflow.ask, "get_run", run_id=run_id), timeout=PATIENCE)
        state = run.state or "PENDING"
        stages = list_stages(run, "RUNNING") if state == "RUNNING" else []
        if (text := " ".join([state.lower(), *stages])) != said:
            said = text
            print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
    parameters = (run.runtime_config and run.runtime_config.parameters) or {}
    again = f"must-pipeline submit --again {run_id}"
    summary = summarize(parameters.get("work_uri", ""), run_id, again)
    if any(entry.state == "CANCELING" for entry in run.state_history or []):
        print("the run was ended by a person")
    elif not summary.table and (failed := list_stages(run, "FAILED")):
        print(f"failed: {', '.join(failed)}")
    print(f"\n{summary.to_text() if summary.table else 'The page about it is the artifact of the stage summary.'}")
    return int(state not in ("SUCCEEDED", "SKIPPED"))


def list_stages(run: Any, state: str) -> list[str]:
    """The stages in that state. Kubeflow has a step of its own before each, and tasks around them."""
    tasks = (run.run_details and run.run_details.task_details) or []
    names = (task.display_name.removesuffix("-driver") for task in tasks if task.state == state)
    return [name for name in dict.fromkeys(names) if name in STAGES]
