"""The summary page of a run that has ended: its outcome, its stages, which one failed, why, and how to resume.

Markdown, for Kubeflow's narrow panel; `as_text` converts it for a terminal.
"""

import logging
import random
import re
import time
from collections.abc import Sequence
from contextlib import suppress

from must.base import storage
from must.base.exits import LONGEST_LINE, line_of
from must.base.files import LAST_FILE
from must.base.text import printable, printable_page
from must.runtime.notes import Facts, Note, note_of, read_notes
from must.runtime.outcome import failing, failure_kind, outcome_of
from must.runtime.places import WorkUri

logger = logging.getLogger(__name__)

SUMMARY_FILE = "summary.md"
LOG = "Last lines of "  # the beginning of the page's last part
RETENTION_S = 14 * 86_400.0  # seconds after its last note for which the notes of a run are kept
RUNS_CHECKED = 50  # number of other runs whose notes' age a summary checks
WHY = {
    "stopped": "asked to end (SIGTERM): a person ended the run, or its node was taken away",
    "held": "it waited for its turn, and the other run is still at work (exit code {code})",
    "overtaken": "no error: the model was compared with a champion that was then replaced (exit code {code})",
    "interrupted": "a dependency failed (exit code {code}): another process, or a store that did not answer",
    "silent": "its pod is lost, cause unknown: a lost node, a time limit, memory, or the run was stopped",
    "time": "its time limit, `timeouts` in cluster.yaml (exit code {code})",
    "input": "wrong input (exit code {code})",
    "killed": "killed (exit code {code}): most often the pod's memory limit",
    "error": "an error in the program or the machine (exit code {code})",
}
KINDS_WITH_REASON = ("input", "held", "overtaken", "interrupted", "error")  # kinds whose last line is the reason
RESUMABLE = {
    "time": "yes, for as long again{progress}",
    "input": "after the input is corrected{progress}",
    "held": "when the other run is over{progress}",
    "overtaken": "yes: finished work is reused, and the model is compared with the new champion",
    "error": "perhaps{progress_or_hint}",
}
STATES = {"stopped": "stopped", "silent": "lost"}  # by failure kind: the state of a stage without a final note
LINE_WIDTH = 66  # characters of the log's lines: Kubeflow's narrow panel cuts off longer lines
BROKEN_OFF = [
    "No stage left a note of a failure. Either a person stopped the run, or the next step could not start: an image",
    "that cannot be pulled, a node that cannot be had, a quota, a step of Kubeflow's own. Its events say which.",
    "",
]


def summarize(
    work_uri: str, run_id: str, state: str | None, again: str, then: Sequence[str] = (), answer: str = "",
    more: Sequence[str] = (),
) -> str:  # fmt: skip
    """Markdown from the stages' notes.

    Args:
        state: the backend's state of the stages; only a hint.
        again: the command that starts the same run again.
        then: the names of the notes of the stages after a promotion.
        answer: the command that adds people's answers; '': one with the run's id.
        more: additional lines for the page of a failed run.
    """
    notes = read_notes(work_uri, run_id)
    outcome = outcome_of(notes, state, then)
    page = [f"# {outcome.headline}", ""]
    if outcome.name == "failed":
        page += failure(notes, again, more)
    elif outcome.name == "waiting":
        page += questions(notes, answer or f"must-pipeline answer {run_id} answers.jsonl")
    elif not outcome.good:
        page += [*BROKEN_OFF, *after_promotion(notes, "the run broke off"), "", f"To start it again: `{again}`", ""]
    page += [*links(notes, run_id), *stage_table(notes)]
    return printable_page("\n".join([*page, *(log_of(notes) if outcome.name == "failed" else [])]))


def leave_page(work_uri: str, run_id: str, page: str) -> None:
    """Writes the page beside the notes, for `submit.py --wait`; then deletes old runs' notes."""
    storage.write_bytes(storage.join(WorkUri(work_uri).notes(run_id), SUMMARY_FILE), page.encode())
    delete_old(work_uri, time.time() - RETENTION_S, run_id)


def delete_old(work_uri: str, before: float, current: str = "") -> None:
    """Deletes the notes of runs that have written none since `before` (seconds since 1970), as live runs do.

    A failure, such as a missing permission or an unreachable store, is only a warning.
    `current`: id of the run whose notes are never deleted, for the case of a wrong clock.
    """
    root = WorkUri(work_uri).every_runs_notes
    try:
        runs = notes_of_runs(root, current)
        for run in random.sample(sorted(runs), min(RUNS_CHECKED, len(runs))):
            with suppress(FileNotFoundError):  # another run that ends now may delete it at the same time
                folder = storage.join(root, run)
                notes = [note_of(storage.read_bytes(storage.join(folder, name))) for name in runs[run]]
                times = [note.started + note.seconds for note in notes if note is not None]
                if times and max(times) < before:
                    storage.delete_folder(folder)
    except (OSError, ValueError) as error:
        logger.warning(f"must: old runs' notes in {printable(root)} stay there: {line_of(error)}")


def notes_of_runs(root: str, current: str) -> dict[str, list[str]]:
    """The JSON files of each run, except those of the run `current`."""
    runs = dict[str, list[str]]()
    for entry in storage.list_files(root):
        run, _, name = entry.name.partition("/")
        if run and run != current and name.endswith(".json"):
            runs.setdefault(run, []).append(name)
    return runs


def links(notes: list[Note], run_id: str) -> list[str]:
    reports = [report_at(note.facts) for note in notes if note.facts.report]
    shown = reports + ([f"run `{run_id}`"] if run_id else [])
    return [" · ".join(shown), ""] if shown else []


def questions(notes: list[Note], answer: str) -> list[str]:
    """The instructions for answering."""
    facts = next(note.facts for note in notes if note.stage == "review")
    uri, link = facts.page, facts.page_link
    page = f"[the page]({link}), or copy it from `{uri}`" if link else f"the page: `{uri}`"
    return [
        f"1. Download {page}. It needs no server; open it in a browser, answer, and save `answers.jsonl`.",
        f"2. `{answer}` puts the answers there, and the run goes on with them.",
        "",
        facts.text,
        "",
    ]


def report_at(facts: Facts) -> str:
    """A link to the report: at Cloud Storage for readers of the bucket, else at Kubeflow's own server, else its URI."""
    uri = facts.report
    if uri.startswith("gs://"):
        return f"[Report](https://storage.cloud.google.com/{uri.removeprefix('gs://')})"
    link = f"[Report]({facts.report_link})" if facts.report_link else "Report"
    return f"{link}: stage *evaluate*, output *report*, Visualization, or `{uri}`"


def failure(notes: list[Note], again: str, more: Sequence[str]) -> list[str]:
    note = failing(notes)
    assert note is not None
    kind, text = failure_kind(note), progress(note)
    resumable = RESUMABLE.get(kind, "yes{progress}")
    resumable = resumable.format(progress=text, progress_or_hint=text or ": nothing is lost")
    started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(note.started))
    why = WHY[kind].format(code=note.code)
    reason = last_reason(note) if kind in KINDS_WITH_REASON else plain(note.facts.pod)
    return [
        f"**Why**: {reason} · {why}" if reason else f"**Why**: {why}",
        "",
        *after_promotion(notes, f"{note.stage} failed"),
        f"- **Resumable**: {resumable}",
        f"- **Command to go on**: `{again}`; in Kubeflow's page, *Clone run* (after *Retry* this page stays as it is)",
        *more,
        f"- **Tried**: {tried(note)}",
        f"- **Ran** {clock(note.seconds)} on `{note.host}`, from {started}",
        "",
    ]


def last_reason(note: Note) -> str:
    """The last line of the stage's log, without the command at its beginning."""
    line = next((line for line in reversed(note.lines) if line.strip() and "; trying again in" not in line), "")
    return plain(re.sub(r"^must [\w-]+: ", "", line.strip()))


def plain(text: str) -> str:
    """Escapes Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", printable(text, LONGEST_LINE))


def log_of(notes: list[Note]) -> list[str]:
    note = failing(notes)
    if note is None or not note.lines:
        return []
    lines = [part for line in note.lines[-20:] for part in wrapped(line)]
    return [f"{LOG}{note.stage}:", "", "```", *lines, "```", ""]


def wrapped(line: str) -> list[str]:
    text = printable(line).replace("```", "'''")[:LONGEST_LINE]
    return [text[start : start + LINE_WIDTH] for start in range(0, len(text), LINE_WIDTH)] or [""]


def after_promotion(notes: list[Note], event: str) -> list[str]:
    """A hint for a run that promoted its model before `event`: when it resumes, `only_new` would find nothing new."""
    versions = [note.facts.version or None for note in notes if note.stage == "promote" and note.state == "done"]
    if not versions:
        return []
    return [
        f"- **Promoted all the same** as {versions[0]}, before {event}: LATEST names it. Go on with "
        "`only_new` false, which else ends the run early"
    ]


def tried(note: Note) -> str:
    if not note.tries:
        return "once; no retry happened"
    earlier = ", ".join(
        f"{'no exit code' if attempt.code is None else f'exit code {attempt.code}'} after {clock(attempt.seconds)}"
        for attempt in note.tries
    )
    return f"{len(note.tries) + 1} times; before: {earlier}"


def progress(note: Note) -> str:
    if not note.checkpoints:
        return ""
    try:
        last = storage.read_bytes(storage.join(note.checkpoints, LAST_FILE)).decode().strip()
    except (FileNotFoundError, NotADirectoryError):
        return "; there is no checkpoint yet, training starts over"
    return f"; training goes on from {last} in {note.checkpoints}"


def stage_table(notes: list[Note]) -> list[str]:
    if not notes:
        return []
    rows = [
        f"| {note.stage} | {state_of(note)} | {len(note.tries) + 1} | {clock(note.seconds)} "
        f"| {printable(note.result, 300).replace('|', '/')} |"
        for note in notes
    ]
    return ["| stage | state | tries | time | result |", "|---|---|---|---|---|", *rows, ""]


def state_of(note: Note) -> str:
    """The stage's state after the run's end, when nothing runs any more."""
    return STATES.get(failure_kind(note), note.state) if note.state != "done" else "done"


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def is_current(page: str, notes: list[Note]) -> bool:
    """Whether the page was made from these notes: Kubeflow's own *Retry* repeats stages, but not the summary."""
    return "\n".join(stage_table(notes)).strip() in page


def as_text(page: str, notes: list[Note]) -> str:
    """The page for a terminal. The log's lines come from the notes, because the page wraps them."""
    main_part, log, _ = page.partition(LOG)
    lines = [without_markup(line) for line in aligned(main_part.splitlines())]
    note = failing(notes)
    if log and note is not None:
        lines += [f"{LOG}{note.stage}:", "", *(f"  {line}" for line in note.lines[-20:])]
    elif log:
        lines += (log + page.partition(LOG)[2]).splitlines()
    return "\n".join(lines).rstrip() + "\n"


def aligned(lines: list[str]) -> list[str]:
    """Aligns the columns of the page's table."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    widths = [max(map(len, column)) for column in zip(*rows, strict=False)]
    aligned_lines = []
    for line in lines:
        if line.startswith("| "):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)).rstrip()
        if not line.startswith("|-"):
            aligned_lines.append(line)
    return aligned_lines


def without_markup(line: str) -> str:
    """Removes Markdown's markup. Of links only absolute addresses remain."""
    line = re.sub(r"^#+ ", "", line)
    line = re.sub(r"\[([^\]]+)\]\((https?://[^)]+)\)", r"\1 (\2)", line)
    line = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", line)
    line = re.sub(r"\*\*(.+?)\*\*|(?<!\w)\*(.+?)\*(?!\w)", lambda match: match[1] or match[2], line)
    return re.sub(r"\\([\\`*_{}\[\]<>#|~])", r"\1", re.sub(r"(?<!\\)`", "", line))
