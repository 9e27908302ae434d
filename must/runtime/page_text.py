"""The run's page for a terminal: summary.py makes Markdown, for Kubeflow's narrow panel."""

import re

from must.runtime.notes import Note
from must.runtime.outcome import failing
from must.runtime.summary import LOG, stage_table


def is_current(page: str, notes: list[Note]) -> bool:
    """Whether the page was made of these notes: Kubeflow's own *Retry* repeats stages, but not the summary."""
    return "\n".join(stage_table(notes)).strip() in page


def as_text(page: str, notes: list[Note]) -> str:
    """The log's lines are those of the notes: on the page they are cut into pieces."""
    shown, log, _ = page.partition(LOG)
    lines = [plain(line) for line in table(shown.splitlines())]
    note = failing(notes)
    if log and note is not None:
        lines += [f"{LOG}{note.stage}:", "", *(f"  {line}" for line in note.lines[-20:])]
    elif log:
        lines += (log + page.partition(LOG)[2]).splitlines()
    return "\n".join(lines).rstrip() + "\n"


def table(lines: list[str]) -> list[str]:
    """A table's columns one below the other."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    widths = [max(map(len, column)) for column in zip(*rows, strict=False)]
    shown = []
    for line in lines:
        if line.startswith("| "):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)).rstrip()
        if not line.startswith("|-"):
            shown.append(line)
    return shown


def plain(line: str) -> str:
    """Without Markdown's signs; a link's address only where it leads somewhere from here."""
    line = re.sub(r"^#+ ", "", line)
    line = re.sub(r"\[([^\]]+)\]\((https?://[^)]+)\)", r"\1 (\2)", line)
    line = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", line)
    line = re.sub(r"\*\*(.+?)\*\*|(?<!\w)\*(.+?)\*(?!\w)", lambda found: found[1] or found[2], line)
    return re.sub(r"\\([\\`*_{}\[\]<>#|~])", r"\1", re.sub(r"(?<!\\)`", "", line))
