"""The code blocks of the documentation, and the commands in them. A block may have a line before it:
`<!-- run: here, why -->`, `parse` or `never`. test_commands.py looks at the flags of all commands; test_walk.py runs
what has no such line, or `here`, on the pages that it goes through."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.common import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"(?:^<!-- run: (\w+)[^\n]*-->\n)?^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:\n\n)((?:    [^\n]*\n(?:\n(?=    ))?)+)")


@dataclass
class Block:
    page: Path
    language: str
    text: str
    run: str  # here, parse, never, or nothing


def blocks(page):
    """In the order of the page; a block that is indented has no language."""
    text = page.read_text()
    found = [(m.start(), Block(page, m[2], m[3], m[1] or "")) for m in FENCE.finditer(text)]
    rest = FENCE.sub(lambda m: "\n" * 2 + "x" * max(0, len(m[0]) - 2), text)
    for match in INDENTED.finditer(rest):
        body = "\n".join(line.removeprefix("    ") for line in match[1].rstrip().split("\n"))
        found.append((match.start(), Block(page, "", body, "")))
    return [block for _, block in sorted(found, key=lambda one: one[0])]


def commands(block):
    """The shell's words of each simple command; comments, variables before it and redirections are left out."""
    if block.language not in ("", "bash", "sh", "shell", "console"):
        return
    for line in re.sub(r"\\\n", " ", block.text).split("\n"):
        reader = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars="|&;<>")
        reader.whitespace_split = True
        try:
            words = list(reader)
        except ValueError:  # no command
            continue
        while words:
            end = next((number for number, word in enumerate(words) if set(word) <= set("|&;<>")), len(words))
            one, words = words[:end], words[end + 1 :]
            while one and re.fullmatch(r"[A-Z_]+=.*", one[0]):
                one.pop(0)
            if one:
                yield one
