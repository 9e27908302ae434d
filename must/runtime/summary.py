"""One page about a run that is over: what came of it, what each stage did, which one failed, why, how to go on."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from must.base import storage
from must.base.exits import line_of
from must.base.text import printable, printable_page
from must.runtime.notes import Note, parse, read_notes
from must.runtime.outcome import Outcome, failing, kind_of, outcome_of
from must.runtime.places import WorkUri

PAGE = "summary.md"
KEPT = 14 * 86_400.0  # seconds that notes of a run are kept after the last was written
LOOKED_AT = 50  # other runs' notes whose age a summary looks at
WHY = {
    "stopped": "stopped from outside (SIGTERM): a person ended the run, its time was over, or its node was taken away",
    "interrupted": "something it needs went away (exit code {code}): another process, or a store that did not answer",
    "silent": "its pod is gone without a word: a lost node, a time limit, memory, or the run was stopped",
    "input": "wrong input (exit code {code}); the last line says what",
    "killed": "killed (exit code {code}): most often the pod's memory limit",
    "error": "an error in the program or the machine (exit code {code})",
}
GOES_ON = {"input": "after the input is mended{kept}", "error": "perhaps{kept_or}"}
BROKEN_OFF = [
    "No stage left a note of a failure. Either a person stopped the run, or the next step could not start: an image",
    "that cannot be pulled, a node that cannot be had, a quota, a step of Kubeflow's own. Its events say which.",
    "",
]


def summarize(work_uri: str, run_id: str, state: str | None, again: str, then: Sequence[str] = ()) -> str:
    """Markdown from the stages' notes.

    Args:
        state: what the backend says of the stages; a hint.
        again: the command that starts the same run again.
        then: the notes that a promotion is followed by.
    """
    notes = read_notes(work_uri, run_id)
    outcome = outcome_of(notes, state, then)
    page = [f"# {outcome.headline}", "", *links(notes, run_id)]
    if outcome.name == "failed":
        page += failure(notes, again)
    elif not outcome.good:
        page += [*BROKEN_OFF, *after_promotion(notes, "the run broke off"), "", f"To start it again: `{again}`", ""]
    return printable_page("\n".join([*page, *stage_table(notes)]))


def leave_page(work_uri: str, run_id: str, page: str) -> None:
    """Writes the page beside the notes, for `submit.py --wait`; then deletes old runs' notes."""
    storage.write_bytes(storage.join(WorkUri(work_uri).notes(run_id), PAGE), page.encode())
    forget_old(work_uri, time.time() - KEPT, run_id)


def forget_old(work_uri: str, before: float, own: str = "") -> None:
    """Deletes the notes of runs that were silent since `before`, in seconds since 1970; a run that lives writes.

    It is no run's task: what keeps it from deleting, no right to it or a store that is away, is a line of warning.

    Args:
        own: the run whose notes stay, whatever its clocks say.
    """
    root = WorkUri(work_uri).every_runs_notes
    try:
        runs = notes_of_runs(root, own)
        for run in random.sample(sorted(runs), min(LOOKED_AT, len(runs))):
            with suppress(FileNotFoundError):  # another run that ends now forgets it, too
                forget_if_old(storage.join(root, run), runs[run], before)
    except (OSError, ValueError) as error:
        print(f"must: old runs' notes in {printable(root)} stay there: {line_of(error)}", file=sys.stderr)


def notes_of_runs(root: str, own: str) -> dict[str, list[str]]:
    """Each run's files that may be notes, but for those of the run `own`."""
    runs = dict[str, list[str]]()
    for entry in storage.list_files(root):
        run, _, name = entry.name.partition("/")
        if run and run != own and name.endswith(".json"):
            runs.setdefault(run, []).append(name)
    return runs


def forget_if_old(folder: str, names: Sequence[str], before: float) -> None:
    """Raises FileNotFoundError, OSError, ValueError: as the store says."""
    found = [parse(storage.read_bytes(storage.join(folder, name))) for name in names]
    notes = [note for note in found if note is not None]
    if notes and all(note.started + note.seconds < before for note in notes):
        storage.delete_folder(folder)


def links(notes: list[Note], run_id: str) -> list[str]:
    reports = [note.facts["report"] for note in notes if note.facts.get("report")]
    shown = [f"[Report]({address(report)})" for report in reports] + ([f"run `{run_id}`"] if run_id else [])
    return [" · ".join(shown), ""] if shown else []


def address(uri: str) -> str:
    """Where a browser finds it, for those who may read the bucket."""
    return f"https://storage.cloud.google.com/{uri.removeprefix('gs://')}" if uri.startswith("gs://") else uri


def failure(notes: list[Note], again: str) -> list[str]:
    note = failing(notes)
    assert note is not None
    kind, kept = kind_of(note), progress(note)
    goes_on = GOES_ON.get(kind, "yes{kept}").format(kept=kept, kept_or=kept or ": nothing is lost")
    return [
        f"- **Why**: {WHY[kind].format(code=note.code)}",
        *after_promotion(notes, f"{note.stage} failed"),
        f"- **Tried**: {tried(note)}",
        f"- **Resumable**: {goes_on}",
        f"- **Command to go on**: `{again}`",
        f"- **Ran** {clock(note.seconds)} on `{note.host}`, from {stamp(note.started)}",
        "",
        *(["Last lines of its log:", "", "```", *(shown(line) for line in note.lines[-20:]), "```", ""]),
    ]


def after_promotion(notes: list[Note], what: str) -> list[str]:
    """A run that goes on finds its own model as the champion: `only_new` would call that nothing new."""
    versions = [one.facts.get("version") for one in notes if one.stage == "promote" and one.state == "done"]
    if not versions:
        return []
    return [
        f"- **Promoted all the same** as {versions[0]}, before {what}: LATEST names it. Go on with "
        "`only_new` and `warm_start` false, which else end the run early or train from the new champion"
    ]


def tried(note: Note) -> str:
    if not note.tries:
        return "once; no retry happened"
    earlier = ", ".join(
        f"{'ended without a word' if one['code'] is None else 'exit code ' + str(one['code'])} after "
        f"{clock(one['seconds'])}" for one in note.tries
    )  # fmt: skip
    return f"{len(note.tries) + 1} times; before: {earlier}"


def progress(note: Note) -> str:
    if not note.checkpoints:
        return ""
    try:
        last = storage.read_bytes(storage.join(note.checkpoints, "LAST")).decode().strip()
    except (FileNotFoundError, NotADirectoryError):
        return "; there is no checkpoint yet, training starts over"
    return f"; training goes on from {last} in {note.checkpoints}"


def stage_table(notes: list[Note]) -> list[str]:
    if not notes:
        return []
    rows = [
        f"| {note.stage} | {note.state} | {len(note.tries) + 1} | {clock(note.seconds)} "
        f"| {printable(note.result, 300).replace('|', '/')} |"
        for note in notes
    ]
    return ["| stage | state | tries | time | result |", "|---|---|---|---|---|", *rows, ""]


def shown(line: str) -> str:
    return printable(line).replace("```", "'''")[:300]


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def stamp(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))


__all__ = ["Outcome", "forget_old", "leave_page", "summarize"]
