"""One page about a run that is over: what each stage did, or which one failed, why, and how to go on."""

from __future__ import annotations

import time

from must import storage
from must.run.notes import Note, read_notes

PREEMPTED = 75
SILENT = [
    "# Run failed",
    "",
    "No stage left a note of its failure: it could not start, or the run was stopped. Look at the failed step's",
    "events: an image that cannot be pulled and a node that cannot be had show there.",
    "",
]


def summarize(work_uri: str, succeeded: bool, again: str) -> str:
    """Markdown from the stages' notes.

    Args:
        succeeded: what Kubeflow says of the run.
        again: the command that starts the same run again.
    """
    notes = read_notes(work_uri)
    failed = [note for note in notes if note.state != "done"]
    if succeeded and not failed:
        return "\n".join(["# Run complete", "", *table(notes)])
    if not failed:
        return "\n".join([*SILENT, f"To start it again: `{again}`", "", *table(notes)])
    note = failed[-1]
    reason, resumable = judge(note)
    page = [
        f"# Run failed: {note.stage}",
        "",
        f"- **Why**: {reason}",
        f"- **Resumable**: {resumable}",
        f"- **Command to go on**: `{again}`",
        f"- **Ran** {clock(note)} on `{note.host}`, from {stamp(note.started)}",
        "",
        "Last lines of its log:",
        "",
        "```",
        *(line.replace("```", "'''")[:300] for line in note.lines[-20:]),
        "```",
        "",
    ]
    return "\n".join([*page, *table([other for other in notes if other is not note])])


def judge(note: Note) -> tuple[str, str]:
    """Why it failed and whether it can go on, in words."""
    kept = progress(note)
    if note.state == "running":
        return "killed without a word (out of memory, a lost node, a time limit, or the run was stopped)", f"yes{kept}"
    if note.code == PREEMPTED:
        return "stopped by a signal; it saved its work first (exit code 75)", f"yes{kept}"
    if note.code == 2:
        return "wrong input (exit code 2); the last line says what", f"after the input is mended{kept}"
    return f"an error in the program or the machine (exit code {note.code})", f"perhaps{kept or ': nothing is lost'}"


def progress(note: Note) -> str:
    if not note.checkpoints:
        return ""
    try:
        last = storage.read_bytes(storage.join(note.checkpoints, "LAST")).decode().strip()
    except (FileNotFoundError, NotADirectoryError):
        return "; there is no checkpoint yet, training starts over"
    return f"; training goes on from {last} in {note.checkpoints}"


def table(notes: list[Note]) -> list[str]:
    if not notes:
        return []
    rows = [f"| {note.stage} | {note.state} | {clock(note)} | {note.result.replace('|', '/')} |" for note in notes]
    return ["| stage | state | time | result |", "|---|---|---|---|", *rows, ""]


def clock(note: Note) -> str:
    minutes, seconds = divmod(round(note.seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def stamp(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))
