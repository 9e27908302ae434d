"""How a run ended, from its stages' notes: one line, why it failed, how to resume, a table of its stages, last lines.

One `Summary` is printed as Markdown, for Kubeflow's narrow panel, or as text, for a terminal. Kubeflow's own state of a
run is not used: only some of its programs update the one that the exit handler gets."""

import logging
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from must.base import storage
from must.base.program import HELD, KILLED, LONGEST_LINE, PREEMPTED, TIME_OVER, WRONG_INPUT, format_error
from must.base.text import make_page_printable, make_printable, pluralize
from must.config.work import LAST_FILE, Workspace
from must.pods.notes import NOTHING_NEW, OVERTAKEN, Facts, Note, read_notes

logger = logging.getLogger(__name__)

SUMMARY_FILE = "summary.md"
LOG_LINES = 20
UNLIKE = 0.1  # share of labelled images with a low similarity, above which a new adaptation is advised
LINE_WIDTH = 66  # characters of the log's lines: Kubeflow's narrow panel cuts off longer lines
COLUMNS = ("stage", "state", "tries", "time", "result")
BROKEN_OFF = (
    "No stage left a note of a failure. Either a person stopped the run, or the next step could not start: an image "
    "that cannot be pulled, a node that cannot be had, a quota, a step of Kubeflow's own. Its events say which."
)


class FailureKind(NamedTuple):
    headline: str
    why: str
    code: int | None = None  # the exit code of the stage that says it
    state: str = "failed"  # of the stage, in the table
    explained: bool = True  # what the stage said last is the reason


STOPPED = FailureKind(
    "Run stopped from outside, during {stage}",
    "asked to end (SIGTERM): a person ended the run, or its node was taken away",
    state="stopped", explained=False,
)  # fmt: skip
SILENT = FailureKind(
    "Run failed: {stage}: its pod is gone",
    "its pod is lost, cause unknown: a lost node, a time limit, memory, or the run was stopped",
    state="lost", explained=False,
)  # fmt: skip
REPLACED = FailureKind(
    "Run stopped: another run promoted a model meanwhile; run it again",
    "no error: the model was compared with a champion that was then replaced (exit code {code})",
)
INPUT = FailureKind("Run failed: {stage}: the input is wrong", "wrong input (exit code {code})", WRONG_INPUT)
ERROR = FailureKind("Run failed: {stage}: an error", "an error in the program or the machine (exit code {code})")
BY_CODE = (
    INPUT,
    FailureKind(
        "Run stopped: another run is writing to this work_uri",
        "it waited for its turn, and the other run is still at work (exit code {code})", HELD,
    ),
    FailureKind(
        "Run failed: {stage}: a dependency failed",
        "a dependency failed (exit code {code}): another process, or a store that did not answer", PREEMPTED,
    ),
    FailureKind(
        "Run failed: {stage}: its time was over", "its time limit, timeouts in cluster.yaml (exit code {code})",
        TIME_OVER, explained=False,
    ),
    FailureKind(
        "Run failed: {stage}: killed, memory may have run out",
        "killed (exit code {code}): most often the pod's memory limit", KILLED, explained=False,
    ),
)  # fmt: skip


def find_kind(note: Note) -> FailureKind:
    """Of a stage that is not done."""
    if note.signalled:
        return STOPPED
    if note.state == "running":
        return SILENT
    if (note.stage, note.code) == OVERTAKEN:
        return REPLACED
    return next((kind for kind in BY_CODE if kind.code == note.code), ERROR)


RETRIED = "Kubeflow's Retry may have ended it well since then:"
REASONS_SHOWN = 3  # why images could not be read
LABEL_PART = re.compile(r"label-[0-9]+-of-([0-9]+)")  # the note of a part: `make_part_name`


class Outcome(NamedTuple):
    good: bool
    headline: str  # one line, for readers who do not know the stages


def determine_outcome(notes: list[Note]) -> Outcome:
    facts = {note.stage: note.facts for note in notes}
    headline = add_labels(facts) or describe_decision(facts)
    if (failed := find_failed(notes)) is not None:
        return Outcome(False, find_kind(failed).headline.format(stage=failed.stage))
    if headline:
        parts = [match for note in notes if (match := LABEL_PART.fullmatch(note.stage))]
        if parts and len(parts) < (count := int(parts[0][1])):
            return Outcome(False, f"{headline}. Then broken off: {count - len(parts)} of {count} parts never started")
        if "evaluate" in facts and "promote" not in facts:  # which also follows a gate that stopped the model
            return Outcome(False, f"{headline}. Then broken off: nothing came after {notes[-1].stage}")
        return Outcome(True, headline)
    last = f"nothing came after {notes[-1].stage}" if notes else "no stage started"
    return Outcome(False, f"Run broken off: {last}")


def find_failed(notes: list[Note]) -> Note | None:
    """The stage that ended the run: the first that failed, else the last one without a final note."""
    failed = sorted((note for note in notes if note.state == "failed"), key=lambda note: note.started + note.seconds)
    silent = [note for note in notes if note.state == "running"]
    return next(iter(failed or silent[-1:]), None)


def describe_decision(facts: dict[str, Facts]) -> str:
    """The first line of a run that decided about a model; '' if it has not."""
    decided, promote, champion = (facts.get(stage, Facts()) for stage in ("evaluate", "promote", "champion"))
    if decided.outcome == "kept at zero-shot" and promote.version:  # the first of its name is promoted nevertheless
        return f"Kept zero-shot: no adaptation was better; promoted as {promote.version}, the first of its name"
    if decided.outcome == "kept at zero-shot" and decided.stays:
        return f"Kept zero-shot: no adaptation was better, so nothing is promoted; {decided.stays}, stays"
    if promote.action == NOTHING_NEW:  # a repeated run made the same model
        return f"Nothing new: the model of this run, {promote.version}, is the champion already"
    if promote.version:
        return f"Promoted {promote.version}{describe_gain(decided)}"
    if decided.outcome in ("stopped", "rolled back"):
        why = [reason.removeprefix("STOP").strip() for reason in decided.reasons if reason.startswith("STOP")]
        return f"Not promoted: {f'stopped by the gate ({why[0]})' if decided.outcome == 'stopped' else why[0]}"
    return f"Nothing new: {champion.why or 'not trained'}" if champion.action == NOTHING_NEW else ""


def add_labels(facts: dict[str, Facts]) -> str:
    """The labels of all parts; "" for a run of another pipeline."""
    rows = sum((Counter(one.rows) for one in facts.values()), Counter[str]())
    unlike = sum(number for kind, number in rows.items() if kind.startswith("similarity below"))
    advice = "; many are unlike those of the model: adapt it again" if unlike > UNLIKE * rows["images"] else ""
    return f"{describe_labels(rows)}{advice}" if rows else ""


def describe_labels(rows: Counter[str]) -> str:
    """Labelled 1,200 images: 50 new, 3 without a class; or that nothing was new."""
    if rows["images"] and not rows["new"]:
        return f"Nothing new: {pluralize(rows['images'], 'image')} are labelled already"
    unread = [kind for kind, _ in rows.most_common() if kind.startswith("not read")]
    shown = rows - Counter({kind: rows[kind] for kind in unread[REASONS_SHOWN:]})
    shown["not read for other reasons"] = sum(rows[kind] for kind in unread[REASONS_SHOWN:])
    others = [f"{number:,} {kind}" for kind, number in shown.most_common() if number and kind != "images"]
    return f"Labelled {pluralize(rows['images'], 'image')}{': ' if others else ''}{', '.join(others)}"


def describe_gain(decided: Facts) -> str:
    """The gain by people's answers, if these decided; or the accuracies, if there are labels."""
    if decided.gain or decided.top1 is None:
        return decided.gain and f": {decided.gain}"
    was = "" if decided.before is None else f", was {decided.before:.1%} ({decided.against})"
    return f": {decided.top1:.1%}{was}"


class StageLine(NamedTuple):
    label: str
    text: str
    link: str = ""  # URL of the label
    command: bool = False  # the text is a command to type


@dataclass
class Summary:
    headline: str
    good: bool = False
    lines: list[StageLine] = field(default_factory=list)
    table: list[tuple[str, ...]] = field(default_factory=list)  # a row for each stage, in the order of COLUMNS
    notes: str = ""  # folder of the notes; '' if they cannot be read
    log: list[str] = field(default_factory=list)  # the last lines of that stage

    def to_markdown(self) -> str:
        lines = []
        for label, text, link, command in self.lines:
            text = f"`{make_printable(text)}`" if command else escape(text)
            lines.append(f"- **{f'[{label}]({link})' if link else label}**: {text}")
        rows = [COLUMNS, ["---"] * len(COLUMNS), *([escape(cell) for cell in row] for row in self.table)]
        log = ["```", *(piece for line in self.log for piece in wrap(line)), "```"]
        return self.join_blocks("# " + escape(self.headline), lines, [f"| {' | '.join(row)} |" for row in rows], log)

    def to_text(self) -> str:
        lines = [f"{line.label}: {make_printable(line.text, LONGEST_LINE)}" for line in self.lines]
        rows = [COLUMNS, *self.table]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return self.join_blocks(
            self.headline, lines, table, [f"  {make_printable(line, LONGEST_LINE)}" for line in self.log]
        )

    def join_blocks(self, headline: str, lines: list[str], table: list[str], log: list[str]) -> str:
        blocks = [[headline], lines, table if self.table else [], ["Last lines:", *log] if self.log else []]
        return make_page_printable("\n\n".join("\n".join(block) for block in blocks if block) + "\n")


def escape(text: str) -> str:
    """Text for Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", make_printable(text, LONGEST_LINE))


def wrap(line: str) -> list[str]:
    text = make_printable(line).replace("```", "'''")[:LONGEST_LINE]
    return [text[start : start + LINE_WIDTH] for start in range(0, len(text), LINE_WIDTH)] or [""]


def summarize(
    work_uri: str, run_id: str, again: str, more: Sequence[str] = (), last: tuple[str, Facts] | None = None
) -> Summary:
    """The summary from the stages' notes; one that says so if the notes cannot be read.

    Args:
        again: the command that starts the same run again.
        more: sentences about the TrainJob of a run that failed.
        last: (note's name, facts) of a stage that ends now, and whose own last note is not there yet."""
    try:
        notes = read_notes(work_uri, run_id)
    except (ValueError, OSError) as error:
        why = f"{format_error(error)}. The log of each stage says how it ended"
        lines = [StageLine("Why", why), StageLine("Command to go on", again, command=True)]
        return Summary(f"Run ended, but the notes of its stages in {work_uri} cannot be read", lines=lines)
    for note in notes:
        if last and note.stage == last[0]:
            note.state, note.facts, note.seconds = "done", last[1], time.time() - note.started
    good, headline = determine_outcome(notes)
    summary = Summary(headline, good, notes=Workspace(work_uri).notes(run_id))
    summary.table = [*map(make_row, notes), *make_total(notes)]
    if (failed := find_failed(notes)) is not None:
        summary.lines.append(StageLine("Why", explain_failure(failed)))
        summary.log = failed.lines[-LOG_LINES:]
    elif not good:
        summary.lines.append(StageLine("Why", BROKEN_OFF))
    if not good:
        if failed is not None and find_kind(failed) is INPUT:
            first = "correct the input; for another value of a parameter start a new run"
            summary.lines.append(StageLine("First", first))
        summary.lines.append(StageLine("Command to go on", again, command=True))
        if failed is not None and failed.facts.checkpoints:
            summary.lines.append(StageLine("Progress", describe_progress(failed.facts.checkpoints)))
        summary.lines += [StageLine("TrainJob", sentence) for sentence in more]
        written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        summary.lines.append(StageLine("Written", f"{written}; {RETRIED} {storage.join(summary.notes, SUMMARY_FILE)}"))
    summary.lines += [StageLine("Labels", note.facts.labels) for note in notes if note.facts.labels]
    summary.lines += [StageLine("Model", note.facts.place) for note in notes if note.facts.place]
    for uri in (note.facts.report for note in notes if note.facts.report):
        link = f"https://storage.cloud.google.com/{uri.removeprefix('gs://')}" if uri.startswith("gs://") else ""
        summary.lines.append(StageLine("Report", f"{uri}, or the output report of the stage evaluate", link))
    summary.lines += [StageLine("Run", run_id)] if run_id else []
    return summary


def make_total(notes: list[Note]) -> list[tuple[str, ...]]:
    """The row of the whole run: its time, and how much of it no stage ran."""
    if len(notes) < 2:
        return []
    first, end, waiting = notes[0].started, notes[0].started, 0.0
    for note in notes:  # in the order in which they started
        waiting += max(0.0, note.started - end)
        end = max(end, note.started + note.seconds)
    return [("all", "", "", format_clock(end - first), f"{format_clock(waiting)} of it waiting for pods")]


def write_page(summary: Summary, output: str = "") -> None:
    """Writes the Markdown page to `output`, and a copy beside the notes; a copy that cannot be written is a warning."""
    page = summary.to_markdown().encode()
    if output:
        storage.write_bytes(output, page)
    if summary.notes:
        try:
            storage.write_bytes(storage.join(summary.notes, SUMMARY_FILE), page)
        except (ValueError, OSError) as error:
            logger.warning(f"must: the summary could not be written beside the notes: {format_error(error)}")


def write_good_page(work_uri: str, run_id: str, last: tuple[str, Facts] | None = None, output: str = "") -> None:
    """Writes the page of a run that has ended well with the stage `last`, as `summarize` takes it. After Kubeflow's
    Retry no exit task runs, and the page that is there tells of the failure before."""
    summary = summarize(work_uri, run_id, "", last=last)
    if summary.good or output:
        write_page(summary, output)


def explain_failure(note: Note) -> str:
    """The reason, if there is one: what the stage said of its end, or the cluster's. It is never guessed from the log,
    whose last line may be any library's."""
    kind, reason = find_kind(note), note.facts.pod
    if kind is SILENT and reason:
        return reason
    if kind.explained:
        reason = note.error.text if note.error else ""
        if note.error and kind is ERROR:  # a bug's message says little without its class
            reason = ": ".join(filter(None, [note.error.kind, reason]))
    return " · ".join(filter(None, [reason, kind.why.format(code=note.code)]))


def describe_progress(checkpoints: str) -> str:
    try:
        last = storage.read_bytes(storage.join(checkpoints, LAST_FILE)).decode().strip()
    except (FileNotFoundError, NotADirectoryError):
        return "there is no checkpoint yet, training starts over"
    except (ValueError, OSError) as error:
        return f"unknown: {format_error(error)}"
    return f"training goes on from {last} in {checkpoints}"


def make_row(note: Note) -> tuple[str, ...]:
    """The stage's state is the one after the run's end, when nothing runs any more."""
    state = "done" if note.state == "done" else find_kind(note).state
    result = make_printable(note.facts.result, 300)
    return make_printable(note.stage), state, str(len(note.tries) + 1), format_clock(note.seconds), result


def format_clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
