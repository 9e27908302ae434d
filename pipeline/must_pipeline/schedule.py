"""Schedules of `must-pipeline submit --cron`: made, listed, removed; and when one runs next, in UTC.

A schedule keeps the version of the pipeline that it was made with: before Pipelines 2.17, one that follows the newest
version starts runs without end. There is one of a name. Kubeflow cannot change one, and deletes a run with it."""

import re
from datetime import UTC, datetime, time, timedelta
from typing import Any

from must.base.errors import UserError
from must.base.lock import HeldError
from must.base.parameters import require
from must_pipeline import DESCRIPTION
from must_pipeline.client import Kubeflow

OVER = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))  # minute, hour, day of the month, month, weekday: 0 is Sunday
PART = re.compile(r"(\*|\d+)(?:-(\d+))?(?:/(\d+))?")  # * or 5, with an end -7, with steps /2
DAYS = 8 * 366  # 2096 and 2104 have a 29th of February, 2100 has none
FORM = "expected minute hour day month weekday in numbers, such as '0 3 * * 1' (Mondays at 3, UTC)"


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


CONTENT = ("experiment_id", "pipeline_id", "version_id", "params", "service_account")


def list_content(schedule: Any) -> list[Any]:
    """The cron line and what is in CONTENT."""
    cron, version = schedule.trigger and schedule.trigger.cron_schedule, schedule.pipeline_version_reference
    return [
        cron and cron.cron, schedule.experiment_id, version and version.pipeline_id,
        version and version.pipeline_version_id, schedule.runtime_config and schedule.runtime_config.parameters,
        schedule.service_account or None,
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
    """The first time after `now`. Of day and weekday, one is enough if both are restricted.
    Raises ValueError: not five fields of numbers, or no such day."""
    now, texts = now or datetime.now(UTC), line.split()
    require(len(texts) == len(RANGES), f"--cron '{line}': {FORM}")
    minutes, hours, days, months, weekdays = (
        parse_field(text, *limits) for text, limits in zip(texts, RANGES, strict=True)
    )
    either = "*" not in texts[2] and "*" not in texts[4]
    for ahead in range(DAYS):
        date = now.date() + timedelta(ahead)
        found = date.day in days, date.isoweekday() % 7 in weekdays
        if date.month in months and (any(found) if either else all(found)):
            for hour, minute in ((hour, minute) for hour in sorted(hours) for minute in sorted(minutes)):
                if (moment := datetime.combine(date, time(hour, minute), UTC)) > now:
                    return moment
    raise UserError(f"--cron '{line}': there is no such day")


def parse_field(text: str, low: int, high: int) -> set[int]:
    """The numbers that a field names."""
    numbers = set[int]()
    for part in text.split(","):
        if not (match := PART.fullmatch(part)):
            raise UserError(f"--cron '{part}': {FORM}")
        begin, end, step = match.groups()
        first = low if begin == "*" else int(begin)
        last = int(end) if end else high if begin == "*" or step else first
        require(low <= first <= last <= high and step != "0", f"--cron '{part}': is not in {low} to {high}")
        numbers.update(range(first, last + 1, int(step or 1)))
    return numbers
