"""Schedules of `must-pipeline submit --cron`: made, listed, removed; and when one runs next, in UTC.

A schedule keeps the version of the pipeline that it was made with: before Pipelines 2.17, one that follows the newest
version starts runs without end. There is one of a name. Kubeflow cannot change one, and deletes a run with it."""

from datetime import UTC, datetime
from typing import Any

from cronsim import CronSim, CronSimError

from must.base.errors import UserError
from must.base.lock import HeldError
from must.base.parameters import require
from must_pipeline import DESCRIPTION
from must_pipeline.client import Kubeflow

OVER = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
FORM = "expected minute hour day month weekday, such as '0 3 * * 1' (Mondays at 3, UTC)"


def make_schedule(kubeflow: Kubeflow, name: str, cron: str, body: dict[str, Any]) -> None:
    """Makes a schedule that runs `body`, arguments of kfp.Client.run_pipeline, or replaces the one of this name. A
    paused one stays paused. Raises HeldError: it has a run in progress."""
    old = find_schedules(kubeflow, name)
    line, paused = f"0 {cron}", bool(old) and all(map(is_paused, old))  # Kubeflow's lines begin with seconds
    done = "is up to date"
    if len(old) != 1 or list_content(old[0]) != [line, *(body[key] for key in CONTENT)]:
        for one in old:
            if run := find_active_run(kubeflow, one):
                raise HeldError(
                    f"{name}: its run {run} is in progress and would end with it, so nothing was changed; do the same "
                    f"again when it is over. {describe_schedule(one)}"
                )
        made = kubeflow.ask(
            "create_recurring_run", job_name=name, cron_expression=line, max_concurrency=1, no_catchup=True,
            enabled=not paused, description=DESCRIPTION, **body,
        )  # fmt: skip
        for one in old:
            kubeflow.ask("delete_recurring_run", recurring_run_id=one.recurring_run_id)
        done, old = "replaced" if old else "made", [made]
    print(f"{name}: {done}{'; it was paused and stays so' if paused else ''}. {describe_schedule(old[0])}")


def list_schedules(kubeflow: Kubeflow, name: str, remove: bool) -> None:
    """Prints the schedules, of one name or all; or removes those of the name. One with a run in progress is paused."""
    require(bool(name) or not remove, "--name is missing: of the schedule to remove")
    found = find_schedules(kubeflow, name)
    for one in found:
        done = ""
        if remove and (run := find_active_run(kubeflow, one)):
            kubeflow.ask("disable_recurring_run", recurring_run_id=one.recurring_run_id)
            one.mode = "DISABLE"
            done = f"its run {run} is in progress and would end with it; do the same again when it is over. "
        elif remove:
            kubeflow.ask("delete_recurring_run", recurring_run_id=one.recurring_run_id)
        gone = remove and not done
        print(f"{one.display_name}: {'removed, no next time' if gone else done + describe_schedule(one)}")
    if not found:
        print(f"{name}: there is no such schedule" if name else "no schedules")


def find_schedules(kubeflow: Kubeflow, name: str) -> list[Any]:
    found = kubeflow.list("recurring_runs", namespace=kubeflow.namespace)
    return [one for one in found if name in ("", one.display_name)]


def find_active_run(kubeflow: Kubeflow, schedule: Any) -> str:
    """The id; "" if none is in progress."""
    mine = schedule.recurring_run_id
    runs = kubeflow.list("runs", experiment_id=schedule.experiment_id, sort_by="created_at desc")
    return next((run.run_id for run in runs if run.recurring_run_id == mine and run.state not in OVER), "")


CONTENT = ("experiment_id", "pipeline_id", "version_id", "params")  # the account is the version's, or the default


def list_content(schedule: Any) -> list[Any]:
    """The cron line and what is in CONTENT."""
    cron, version = schedule.trigger and schedule.trigger.cron_schedule, schedule.pipeline_version_reference
    return [
        cron and cron.cron, schedule.experiment_id, version and version.pipeline_id,
        version and version.pipeline_version_id, schedule.runtime_config and schedule.runtime_config.parameters,
    ]  # fmt: skip


def is_paused(schedule: Any) -> bool:
    return schedule.mode == "DISABLE" or schedule.status == "DISABLED"


def describe_schedule(schedule: Any) -> str:
    """It ends with the state and the next time."""
    line, _, _, version, *_ = list_content(schedule)
    kept = (
        f"it keeps the version {version}: make it again after an upload" if version else "it follows the newest version"
    )
    try:
        moment = f"{find_next_time((line or '').removeprefix('0 ')):%Y-%m-%d %H:%M} UTC"
    except UserError:  # made by another program, in a form of its own
        moment = "unknown"
    state = (
        f"paused, on Kubeflow's page it is resumed; then next {moment}"
        if is_paused(schedule)
        else f"active, next {moment}"
    )
    return f"{line}, {kept}; {state}"


def find_next_time(line: str, now: datetime | None = None) -> datetime:
    """The first time after `now`. Raises ValueError: the line is wrong, or no day is meant."""
    try:
        require(len(line.split()) == 5, f"--cron '{line}': {FORM}")
        return next(CronSim(line, now or datetime.now(UTC)))
    except CronSimError as error:
        raise UserError(f"--cron '{line}': {error}; {FORM}") from None
