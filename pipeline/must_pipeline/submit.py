"""Starts one run, of a file of parameters, or the same as a run before: must-pipeline submit."""

import argparse
import time
from pathlib import Path
from typing import Any

from must.base.parameters import read_mapping, require
from must.base.text import without_secrets
from must_pipeline.server.api import Kfp, api, api_errors
from must_pipeline.server.parameters import check_parameters
from must_pipeline.server.wait import wait


def main(options: argparse.Namespace) -> None:
    raise SystemExit(submit(options))


def submit(options: argparse.Namespace) -> int:
    """Returns the exit code: 0, or 1 for a run that was waited for and failed."""
    require(options.restarts >= 0, f"--restarts {options.restarts}: must not be negative")
    kfp = Kfp(options)
    if options.again:
        body = copy_run(kfp, options.again)
    else:
        parameters = read_mapping(options.parameters, f"--parameters {options.parameters}")
        body = make_run(kfp, options.pipeline, options.pipeline_name, options.experiment, parameters)
    body.display_name = options.name or f"{options.pipeline_name} {time.strftime('%Y-%m-%d %H:%M')}"
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
    print(f"run {run.run_id} started: {without_secrets(kfp.host)}/#/runs/details/{run.run_id}", flush=True)
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
