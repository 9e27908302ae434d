"""Scheduled retraining: must-pipeline schedule."""

import argparse
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from must.base.errors import UserError
from must.base.parameters import convert_fields, read_mapping, require
from must_pipeline import DESCRIPTION
from must_pipeline.api import Kfp, api, api_errors
from must_pipeline.files import name_pipeline
from must_pipeline.submit import OVER, check_parameters


@dataclass(frozen=True)
class RecurringRun:
    """The content of a schedule file; pipeline/schedule.yaml explains it."""

    name: str = ""
    cron: str = ""
    experiment: str = "must"
    pipeline: str = ""  # the uploaded pipeline's name; that in the compiled file if empty
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)


def main(options: argparse.Namespace) -> None:
    if options.action != "list" and not options.what:
        raise UserError(f"{options.action}: {'which file' if options.action == 'apply' else 'which schedule'}?")
    if options.action == "apply":
        schedule = read_schedule(Path(options.what), options.pipeline)
        apply(Kfp(options), schedule, options.pipeline)
    elif options.action == "list":
        print_schedules(Kfp(options))
    else:
        switch(Kfp(options), options.action, options.what)


def read_schedule(path: Path, pipeline: Path) -> RecurringRun:
    """Raises ValueError: an unknown key, a wrong cron line, parameters that the pipeline does not have."""
    schedule: RecurringRun = convert_fields(read_mapping(path, f"apply {path}"), RecurringRun, "")
    for key in ("name", "cron"):
        require(bool(getattr(schedule, key)), f"{path}: {key} is missing")
    parameters = check_parameters(pipeline, schedule.parameters)
    name = schedule.pipeline or name_pipeline(pipeline)
    return replace(schedule, cron=add_seconds(schedule.cron), parameters=parameters, pipeline=name)


def add_seconds(cron: str) -> str:
    """Kubeflow's cron lines begin with seconds: adds a 0 to the usual five fields."""
    count = len(cron.split())
    if count not in (5, 6) and not cron.startswith("@"):
        raise UserError(
            f"cron '{cron}': expected minute hour day month weekday, such as '0 3 * * 1' (Mondays at 3, UTC)"
        )
    return f"0 {cron}" if count == 5 else cron


def apply(kfp: Kfp, schedule: RecurringRun, pipeline_file: Path) -> None:
    """Kubeflow cannot change a recurring run: creates a new one, then deletes the old one (pauses it if it has a run in
    progress).

    If this is interrupted in between, there are two until it is applied again. If their runs overlap, one of them fails
    with a message: shards and checkpoints have locks, a stage refuses shards that another run has changed since, and
    after one model is promoted the other is refused."""
    experiment = kfp.experiment(schedule.experiment)
    pipeline, version, uploaded = kfp.upload(pipeline_file, schedule.pipeline)
    why = explain_fixed_version(kfp.version())
    if uploaded:
        users = "this schedule uses it" if why else "every schedule of it uses it from now on"
        print(f"pipeline {schedule.pipeline}: new version uploaded; {users}")
    if why:
        print(f"{schedule.name}: keeps this version of the pipeline: {why}. Apply it again after each upload")
    expected = make_recurring_run(kfp, schedule, experiment, pipeline, version if why else "")
    existing = kfp.schedules(schedule.name)
    if existing and list_set_fields(existing[0]) == list_set_fields(expected):
        remove(kfp, existing[1:])
        print(f"{schedule.name}: is up to date ({describe_state(existing[0])})")
        return
    with api_errors(kfp.host, kfp.account, kfp.namespace):
        if existing and describe_state(existing[0]) == "paused":
            expected.mode = "DISABLE"
        kfp.recurring.recurring_run_service_create_recurring_run(expected)
    remove(kfp, existing)
    print(f"{schedule.name}: {'updated' if existing else 'created'}, {schedule.cron} (UTC)")


def explain_fixed_version(server: str) -> str:
    """Why a schedule must not follow the pipeline's newest version; '' if it may. Before 2.17 the API server does not
    label such a schedule's workflows, so its controller does not see them and starts one every ten seconds."""
    numbers = [int(number) for number in re.findall(r"\d+", server)[:2]]
    if numbers >= [2, 17]:
        return ""
    unknown = "its version is unknown (its page shows it at the bottom of the menu)"
    which = f"this is Pipelines {server}" if server else unknown
    return f"{which}, and before 2.17 a schedule of the newest version starts runs without end"


def make_recurring_run(kfp: Kfp, schedule: RecurringRun, experiment: str, pipeline: str, version: str) -> Any:
    """`version`: of the pipeline; '' for the newest one at each time."""
    return api.V2beta1RecurringRun(
        display_name=schedule.name,
        description=schedule.description or DESCRIPTION,
        experiment_id=experiment,
        pipeline_version_reference=api.V2beta1PipelineVersionReference(pipeline, version or None),
        runtime_config=api.V2beta1RuntimeConfig(parameters=schedule.parameters),
        trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=schedule.cron)),
        max_concurrency="1",
        no_catchup=True,
        mode="ENABLE",
        namespace=kfp.namespace or None,
        service_account=kfp.account or None,
    )


def list_set_fields(run: Any) -> list[Any]:
    """The fields that a schedule file sets, for comparison with the server's."""
    reference, cron = run.pipeline_version_reference, run.trigger and run.trigger.cron_schedule
    return [
        run.description or None,
        run.experiment_id,
        reference and (reference.pipeline_id, reference.pipeline_version_id or None),
        (run.runtime_config and run.runtime_config.parameters) or {},
        cron and cron.cron,
        str(run.max_concurrency),
        bool(run.no_catchup),
        run.service_account or None,
    ]


def remove(kfp: Kfp, runs: list[Any]) -> bool:
    """Whether all could be deleted. One with a run in progress is only paused: deleting it would end that run."""
    if not runs:
        return True
    all_deleted = True
    with api_errors(kfp.host):
        busy = {
            run.recurring_run_id: run.run_id
            for run in kfp.pages(kfp.runs.run_service_list_runs, "runs")
            if run.recurring_run_id and (run.state or "PENDING") not in OVER
        }
        for run in runs:
            if run.recurring_run_id not in busy:
                kfp.recurring.recurring_run_service_delete_recurring_run(run.recurring_run_id)
                continue
            all_deleted = False
            kfp.recurring.recurring_run_service_disable_recurring_run(run.recurring_run_id)
            print(
                f"{run.display_name}: the run {busy[run.recurring_run_id]} is going on and would end with the schedule "
                "that began it, which is paused instead; do the same again when the run is over, or terminate it"
            )
    return all_deleted


def print_schedules(kfp: Kfp) -> None:
    runs = kfp.schedules()
    for run in runs:
        cron = run.trigger.cron_schedule.cron if run.trigger and run.trigger.cron_schedule else "(no cron)"
        version = run.pipeline_version_reference and run.pipeline_version_reference.pipeline_version_id
        print(f"{run.display_name:30}  {describe_state(run):7}  {cron:20}  {version or 'newest version'}")
    if not runs:
        print("no schedules")


def switch(kfp: Kfp, action: str, name: str) -> None:
    runs = kfp.schedules(name)
    if not runs and action == "delete":
        print(f"{name}: there is no such schedule; nothing to do")
        return
    if not runs:
        known = ", ".join(sorted(run.display_name for run in kfp.schedules())) or "none"
        raise UserError(f"{action} {name}: there is no such schedule; there are: {known}")
    if action == "delete" and not remove(kfp, runs):
        return
    with api_errors(kfp.host):
        for run in runs if action == "pause" else []:
            kfp.recurring.recurring_run_service_disable_recurring_run(run.recurring_run_id)
        if action == "resume":  # the newest one; the others wait for the end of their run
            kfp.recurring.recurring_run_service_enable_recurring_run(runs[0].recurring_run_id)
    print(f"{name}: {action}d")


def describe_state(run: Any) -> str:
    return "paused" if run.mode == "DISABLE" or run.status == "DISABLED" else "active"
