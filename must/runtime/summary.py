"""The summary of a run that has ended: its outcome, why it failed, how to resume, its stages, its last lines.

One `Summary` is computed from the notes; it is printed as Markdown, for Kubeflow's narrow panel, or as text, for a
terminal.
"""

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from must.base import storage
from must.base.exits import LONGEST_LINE, format_error
from must.base.files import LAST_FILE
from must.base.text import printable, printable_page
from must.runtime.notes import Facts, Note, read_notes
from must.runtime.outcome import SUCCESS_STATES, determine_outcome, failing, failure_kind
from must.runtime.places import WorkUri

logger = logging.getLogger(__name__)

SUMMARY_FILE = "summary.md"
LOG_LINES = 20
WHY = {
    "stopped": "asked to end (SIGTERM): a person ended the run, or its node was taken away",
    "held": "it waited for its turn, and the other run is still at work (exit code {code})",
    "overtaken": "no error: the model was compared with a champion that was then replaced (exit code {code})",
    "interrupted": "a dependency failed (exit code {code}): another process, or a store that did not answer",
    "silent": "its pod is lost, cause unknown: a lost node, a time limit, memory, or the run was stopped",
    "time": "its time limit, timeouts in cluster.yaml (exit code {code})",
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
BROKEN_OFF = (
    "No stage left a note of a failure. Either a person stopped the run, or the next step could not start: an image "
    "that cannot be pulled, a node that cannot be had, a quota, a step of Kubeflow's own. Its events say which."
)
COLUMNS = ("stage", "state", "tries", "time", "result")


class Line(NamedTuple):
    label: str
    text: str
    link: str = ""  # URL of the label
    command: bool = False  # the text is a command to type


@dataclass
class Summary:
    headline: str
    lines: list[Line] = field(default_factory=list)
    table: list[tuple[str, ...]] = field(default_factory=list)  # a row for each stage, in the order of COLUMNS
    notes: str = ""  # folder of the notes; '' if they cannot be read
    stage: str = ""  # the stage that failed
    failure: str = ""  # how it failed: a result of outcome.failure_kind
    log: list[str] = field(default_factory=list)  # the last lines of that stage

    def to_markdown(self) -> str:
        parts = [f"# {self.headline}", "\n".join(map(markdown_line, self.lines))]
        if self.table:
            rows = [[cell.replace("|", "/") for cell in row] for row in (COLUMNS, ["---"] * len(COLUMNS), *self.table)]
            parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
        if self.log:
            log = [part for line in self.log for part in wrap(line)]
            parts.append("\n".join([f"Last lines of {self.stage}:", "", "```", *log, "```"]))
        return printable_page("\n\n".join(filter(None, parts)) + "\n")

    def to_text(self) -> str:
        parts = [self.headline, "\n".join(map(text_line, self.lines))]
        if self.table:
            rows = [COLUMNS, *self.table]
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            parts.append("\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows))
        if self.log:
            log = [f"  {printable(line, LONGEST_LINE)}" for line in self.log]
            parts.append("\n".join([f"Last lines of {self.stage}:", "", *log]))
        return printable_page("\n\n".join(filter(None, parts)) + "\n")


def escape(text: str) -> str:
    """Text for Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", printable(text, LONGEST_LINE))


def markdown_line(line: Line) -> str:
    label = f"[{line.label}]({line.link})" if line.link else line.label
    return f"- **{label}**: {f'`{printable(line.text)}`' if line.command else escape(line.text)}"


def text_line(line: Line) -> str:
    return f"{line.label}: {printable(line.text, LONGEST_LINE)}"


def wrap(line: str) -> list[str]:
    text = printable(line).replace("```", "'''")[:LONGEST_LINE]
    return [text[start : start + LINE_WIDTH] for start in range(0, len(text), LINE_WIDTH)] or [""]


def summarize(work_uri: str, run_id: str, state: str | None, again: str, more: Sequence[str] = ()) -> Summary:
    """The summary from the stages' notes; one that says so if the notes cannot be read.

    Args:
        state: the backend's state of the stages; only a hint.
        again: the command that starts the same run again.
        more: sentences about the TrainJob of a run that failed.
    """
    folder = WorkUri(work_uri).notes(run_id)
    try:
        notes = read_notes(work_uri, run_id)
    except (ValueError, OSError) as error:
        ended = "Run complete" if state in SUCCESS_STATES else "Run ended"
        why = f"{format_error(error)}. The log of each stage says how it ended"
        lines = [Line("Why", why), Line("Command to go on", again, command=True)]
        return Summary(f"{ended}, but the notes of its stages in {work_uri} cannot be read", lines)
    outcome = determine_outcome(notes, state)
    summary = Summary(outcome.headline, table=[table_row(note) for note in notes], notes=folder)
    failed = failing(notes)
    if failed is not None:
        summary.lines += failure_lines(failed, notes, again, more)
        summary.stage, summary.failure = failed.stage, failure_kind(failed)
        summary.log = failed.lines[-LOG_LINES:]
    elif not outcome.good:
        summary.lines += [Line("Why", BROKEN_OFF), *after_promotion(notes, "the run broke off")]
        summary.lines.append(Line("Command to start it again", again, command=True))
    summary.lines += [report_line(note.facts) for note in notes if note.facts.report]
    summary.lines += [Line("Run", run_id)] if run_id else []
    return summary


def write_page(summary: Summary, output: str) -> None:
    """Writes the Markdown page to `output`, and a copy beside the notes; a copy that cannot be written is a warning."""
    page = summary.to_markdown().encode()
    storage.write_bytes(output, page)
    if summary.notes:
        try:
            storage.write_bytes(storage.join(summary.notes, SUMMARY_FILE), page)
        except (ValueError, OSError) as error:
            logger.warning(f"must: the summary could not be written beside the notes: {format_error(error)}")


def failure_lines(note: Note, notes: list[Note], again: str, more: Sequence[str]) -> list[Line]:
    kind, text = failure_kind(note), progress(note)
    resumable = RESUMABLE.get(kind, "yes{progress}")
    why = WHY[kind].format(code=note.code)
    reason = last_reason(note) if kind in KINDS_WITH_REASON else note.facts.pod
    started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(note.started))
    return [
        Line("Why", f"{reason} · {why}" if reason else why),
        *after_promotion(notes, f"{note.stage} failed"),
        Line("Resumable", resumable.format(progress=text, progress_or_hint=text or ": nothing is lost")),
        Line("Command to go on", again, command=True),
        *(Line("TrainJob", sentence) for sentence in more),
        Line("Tried", tried(note)),
        Line("Ran", f"{clock(note.seconds)} on {note.host}, from {started}"),
    ]


def report_line(facts: Facts) -> Line:
    """The report's URL: at Cloud Storage for readers of the bucket, else at Kubeflow's own server, if there is one."""
    uri, link = facts.report, facts.report_link
    if uri.startswith("gs://"):
        link = f"https://storage.cloud.google.com/{uri.removeprefix('gs://')}"
    return Line("Report", f"{uri}, or the output report of the stage evaluate", link)


def last_reason(note: Note) -> str:
    """The last line of the stage's log, without the command at its beginning."""
    line = next((line for line in reversed(note.lines) if line.strip() and "; trying again in" not in line), "")
    return re.sub(r"^must [\w-]+: ", "", line.strip())


def after_promotion(notes: list[Note], event: str) -> list[Line]:
    """A hint for a run that promoted its model before `event`: when it resumes, `only_new` would find nothing new."""
    versions = [note.facts.version for note in notes if note.stage == "promote" and note.state == "done"]
    why = f"before {event}; go on with only_new false, which else ends the run early"
    return [Line("Promoted all the same", f"{version or 'the model'}, {why}") for version in versions]


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
    except (ValueError, OSError):
        return ""
    return f"; training goes on from {last} in {note.checkpoints}"


def table_row(note: Note) -> tuple[str, ...]:
    """The stage's state is the one after the run's end, when nothing runs any more."""
    state = STATES.get(failure_kind(note), note.state) if note.state != "done" else "done"
    return printable(note.stage), state, str(len(note.tries) + 1), clock(note.seconds), printable(note.result, 300)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
