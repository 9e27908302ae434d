"""The summary page of a run that has ended: its outcome, its stages, which one failed, why, and how to resume.

It is Markdown, for Kubeflow's narrow panel, and short enough to be read as it is in a terminal.
"""

import re
import time
from collections.abc import Sequence

from must.base import storage
from must.base.exits import LONGEST_LINE
from must.base.files import LAST_FILE
from must.base.text import printable, printable_page
from must.runtime.notes import Facts, Note, read_notes
from must.runtime.outcome import IN_SHORT, failing, failure_kind, outcome_of
from must.runtime.places import WorkUri

SUMMARY_FILE = "summary.md"
SAYS_WHY = ("input", "held", "overtaken", "interrupted", "error")  # kinds whose last line is the reason
RESUMABLE = {  # by failure kind
    "time": "yes, for as long again",
    "input": "after the input is corrected",
    "held": "when the other run is over",
    "overtaken": "yes: the model is compared with the new champion",
    "error": "perhaps",
}
STATES = {"stopped": "stopped", "silent": "lost"}  # by failure kind: the state of a stage without a final note
BROKEN_OFF = (
    "No stage left a note of a failure: a person stopped the run, or a step could not start; its events say which."
)


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
        page += [BROKEN_OFF, "", *after_promotion(notes, "the run broke off"), "", f"To start it again: `{again}`", ""]
    page += [*links(notes, run_id), *stage_table(notes)]
    return printable_page("\n".join([*page, *(log_of(notes) if outcome.name == "failed" else [])]))


def leave_page(work_uri: str, run_id: str, page: str) -> None:
    """Writes the page beside the notes, for `must-pipeline submit --wait`."""
    storage.write_bytes(storage.join(WorkUri(work_uri).notes(run_id), SUMMARY_FILE), page.encode())


def is_current(page: str, notes: list[Note]) -> bool:
    """Whether the page was made from these notes: Kubeflow's own *Retry* repeats stages, but not the summary."""
    return "\n".join(stage_table(notes)).strip() in page


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
    """A link to the report at Kubeflow's own server, and its URI."""
    link = f"[Report]({facts.report_link})" if facts.report_link else "Report"
    return f"{link}: stage *evaluate*, output *report*, Visualization, or `{facts.report}`"


def failure(notes: list[Note], again: str, more: Sequence[str]) -> list[str]:
    note = failing(notes)
    assert note is not None
    kind = failure_kind(note)
    reason = last_reason(note) if kind in SAYS_WHY else plain(note.facts.pod)
    why = " · ".join(filter(None, [reason, IN_SHORT.get(kind, ""), f"exit code {note.code}" if note.code else ""]))
    started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(note.started))
    return [
        f"**Why**: {why}",
        "",
        *after_promotion(notes, f"{note.stage} failed"),
        f"- **Resumable**: {RESUMABLE.get(kind, 'yes')}{progress(note)}",
        f"- **Command to go on**: `{again}`; in Kubeflow's page, *Clone run* (after *Retry* this page stays as it is)",
        *more,
        *([f"- **Exit codes of earlier tries**: {', '.join(map(str, note.tries))}"] if note.tries else []),
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
    lines = [printable(line, LONGEST_LINE).replace("```", "'''") for line in note.lines[-20:]]
    return [f"Last lines of {note.stage}:", "", "```", *lines, "```", ""]


def after_promotion(notes: list[Note], event: str) -> list[str]:
    """A hint for a run that promoted its model before `event`: when it resumes, `only_new` would find nothing new."""
    versions = [note.facts.version or None for note in notes if note.stage == "promote" and note.state == "done"]
    if not versions:
        return []
    return [
        f"- **Promoted all the same** as {versions[0]}, before {event}: LATEST names it. Go on with "
        "`only_new` false, which else ends the run early"
    ]


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
