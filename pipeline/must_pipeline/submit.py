"""Starts one run: must-pipeline submit --parameters FILE.yaml, or --again RUN_ID for the same as a run before.

The compiled pipeline is uploaded as a new version if its content is new. A run that failed is started again with the
same parameters; finished stages are at work_uri, so it resumes from there."""

import argparse
import time
from pathlib import Path
from typing import Any

from must.base.flags import OneLineParser
from must.base.parameters import read_mapping, require
from must.base.text import without_secrets
from must_pipeline.files import COMPILED, nearest
from must_pipeline.server.api import Kfp, add_arguments, api, api_errors
from must_pipeline.server.parameters import check_parameters
from must_pipeline.server.wait import wait


def main() -> None:
    parser = OneLineParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--parameters", type=Path, metavar="FILE", help="YAML file with the run's parameters")
    source.add_argument("--again", metavar="RUN_ID", help="pipeline version and parameters of this run")
    parser.add_argument(
        "--pipeline", type=Path, default=nearest(COMPILED), help="the compiled pipeline [must_pipeline.yaml]"
    )
    parser.add_argument("--pipeline-name", default="must", help="the uploaded pipeline's name [must]")
    parser.add_argument("--experiment", default="must", help="the group of runs it belongs to [must]")
    parser.add_argument("--name", default="", help="the run's name")
    parser.add_argument(
        "--wait", action="store_true", help="until it is over, then print its summary; exit code 1 if it fails"
    )
    parser.add_argument(
        "--restarts", type=int, default=2, metavar="N",
        help="with --wait: times a run that was stopped, but not by a person, is started again [2]",
    )  # fmt: skip
    add_arguments(parser)
    raise SystemExit(submit(parser.parse_args()))


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
