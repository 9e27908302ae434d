"""How a run ended, determined from its stages' notes. The backend's state is only a hint.

Kubeflow Pipelines gives the exit handler a state that only some of its programs update: a successful run may be RUNNING
or FAILED there (and is never SUCCEEDED, which only the local runner uses).
"""

from collections.abc import Callable
from typing import NamedTuple

from must.base.exits import HELD, KILLED, PREEMPTED, TIME_OVER, WRONG_INPUT
from must.base.lock import run_in
from must.runtime.notes import Facts, Note
from must.runtime.supervise import OVERTAKEN

NOTHING_NEW = "nothing new"  # the action of the stage champion that ends a run, and of a repeated promotion
SUCCESS_STATES = ("SUCCEEDED", "COMPLETE")


class Outcome(NamedTuple):
    name: str
    good: bool
    headline: str  # one line, for readers who do not know the stages


def determine_outcome(notes: list[Note], state: str | None) -> Outcome:
    """`state`: the backend's state of the stages, such as COMPLETE or RUNNING."""
    failure = failing(notes)
    if failure is not None:
        kind = failure_kind(failure)
        if kind == "stopped":  # not an error of the run
            return Outcome("failed", False, f"Run stopped from outside, during {failure.stage}")
        if kind == "overtaken":
            return Outcome("failed", False, "Run stopped: another run promoted a model meanwhile; run it again")
        if kind == "held":
            return Outcome("failed", False, f"Run stopped: {other_run(failure)} is writing to this work_uri")
        return Outcome("failed", False, f"Run failed: {failure.stage}: {SHORT_REASONS[kind]}")
    by_stage = {note.stage: note for note in notes}
    for name, rule in GOOD_ENDS:
        if headline := rule(by_stage):
            if missing := [stage for stage in still_due(by_stage) if stage not in by_stage]:
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                headline = f"{headline}. Then broken off: {missing[0]}{more} never started"
                return Outcome("broken off", False, headline)
            return Outcome(name, True, headline)
    if not notes and state in SUCCESS_STATES:
        return Outcome("complete", True, "Run complete, but its stages could leave no notes")
    last = f"nothing came after {notes[-1].stage}" if notes else "no stage started"
    return Outcome("broken off", False, f"Run broken off: {last}")


def still_due(notes: dict[str, Note]) -> list[str]:
    """The stages that must run after the decision: `export` after every gate, and those that cluster.yaml and the run
    want after a promotion, by the note of the stage inputs."""
    if "promote" in notes:
        return stage_facts(notes, "inputs").then
    return ["export"] if "gate" in notes else []


def failing(notes: list[Note]) -> Note | None:
    """The stage that ended the run: the first that failed, else the last one without a final note."""
    failed = sorted((note for note in notes if note.state == "failed"), key=lambda note: note.started + note.seconds)
    silent = [note for note in notes if note.state == "running"]
    return next(iter(failed or silent[-1:]), None)


# Rules for successful ends: the first rule with a headline counts.
def kept_zero_shot(notes: dict[str, Note]) -> str:
    """The zero-shot model was kept (alpha 0). The first model of its name is promoted nevertheless."""
    facts, version = stage_facts(notes, "gate"), stage_facts(notes, "promote").version
    if facts.outcome != "kept zero-shot":
        return ""
    if version:
        return f"Kept zero-shot: no adaptation was better; promoted as {version}, the first of its name"
    if champion := facts.against:
        return f"Kept zero-shot: no adaptation was better, so nothing is promoted; {champion}, stays"
    return ""  # without a champion a promotion must follow


def promoted(notes: dict[str, Note]) -> str:
    """A repeated run makes the same model: its version is the champion already."""
    facts = stage_facts(notes, "promote")
    if facts.action == NOTHING_NEW:
        return f"Nothing new: the model of this run, {facts.version}, is the champion already"
    return f"Promoted {facts.version or 'the model'}{gain(notes)}" if "promote" in notes else ""


def stopped(notes: dict[str, Note]) -> str:
    facts = stage_facts(notes, "gate")
    return f"Not promoted: stopped by the gate{because(facts)}" if facts.outcome == "stopped" else ""


def nothing_new(notes: dict[str, Note]) -> str:
    facts = stage_facts(notes, "champion")
    return f"Nothing new: {facts.why or 'not trained'}" if facts.action == NOTHING_NEW else ""


GOOD_ENDS: tuple[tuple[str, Callable[[dict[str, Note]], str]], ...] = (
    ("kept zero-shot", kept_zero_shot),
    ("promoted", promoted),
    ("stopped", stopped),
    ("nothing new", nothing_new),
)


def gain(notes: dict[str, Note]) -> str:
    """The accuracies, if there are labels: of the model and of the champion, or else of the zero-shot model."""
    measured, gate = stage_facts(notes, "evaluate"), stage_facts(notes, "gate")
    after = measured.top1
    before, who = gate.before, gate.against
    if before is None:
        before, who = measured.before, "zero-shot"
    if after is None:
        return ""
    return f": {after:.1%}" + (f", was {before:.1%} ({who})" if before is not None else "")


def because(facts: Facts) -> str:
    why = [reason.removeprefix("STOP").strip() for reason in facts.reasons if reason.startswith("STOP")]
    return f" ({why[0]})" if why else ""


def stage_facts(notes: dict[str, Note], stage: str) -> Facts:
    return notes[stage].facts if stage in notes else Facts()


# Failures.
def failure_kind(note: Note) -> str:
    """A key of SHORT_REASONS and of summary.py's explanations."""
    if note.signalled:
        return "stopped"
    if note.state == "running":
        return "silent"
    if (note.stage, note.code) == OVERTAKEN:
        return "overtaken"
    kinds = {WRONG_INPUT: "input", HELD: "held", PREEMPTED: "interrupted", KILLED: "killed", TIME_OVER: "time"}
    return kinds.get(note.code, "error")


def other_run(note: Note) -> str:
    """The owner of the lock that this stage waited for."""
    run_id = next(filter(None, map(run_in, reversed(note.lines))), "")
    return f"another run, {run_id}," if run_id else "another program"


SHORT_REASONS = {
    "interrupted": "a dependency failed",
    "silent": "its pod is gone",
    "input": "the input is wrong",
    "time": "its time was over",
    "killed": "killed, memory may have run out",
    "error": "an error",
}
