"""Prints the stages' output without the log of Kubeflow Pipelines' local runner."""

import io
import re
from typing import TextIO

COLOR = re.compile(r"\x1b\[[0-9;]*m")
LOG_LINE = re.compile(r"\d\d:\d\d:\d\d\.\d{3} - (INFO|ERROR|WARNING) - (.*)")


class StageOutput(io.TextIOBase):
    """Replaces stdout: prints each stage's own lines under the stage's name."""

    def __init__(self, target: TextIO) -> None:
        self.target = target
        self.pending = ""
        self.skipping_json = False
        self.in_runner_text = False
        self.indent = "    "  # the runner's, in front of a stage's lines; longer inside a loop

    def write(self, text: str) -> int:
        self.pending += text
        *lines, self.pending = self.pending.split("\n")
        for line in lines:
            if (output := self.show(COLOR.sub("", line))) is not None:
                self.target.write(output + "\n")
                self.target.flush()
        return len(text)

    def flush(self) -> None:
        self.target.flush()

    def show(self, line: str) -> str | None:
        """The text to print for a line, or None."""
        if match := LOG_LINE.match(line):
            level, text = match.groups()
            self.in_runner_text = "Streamed logs" not in text
            if stage := re.match(r"Executing task '(.*)'", text):
                return f"\n== {stage.group(1)} =="
            return text if level != "INFO" else None
        if (text := line.lstrip(" ")).startswith("[KFP Executor"):  # a stage's first line
            self.indent = line.removesuffix(text)
            self.skipping_json = "Got executor_input" in text
            return None
        stage_line = line.removeprefix(self.indent)
        if self.skipping_json:
            self.skipping_json = stage_line != "}"
            return None
        if self.in_runner_text or not stage_line.strip() or set(line) == {"-"}:
            return None
        return stage_line
