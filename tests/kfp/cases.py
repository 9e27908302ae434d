"""The ways a run can end, and what is done to it meanwhile."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kfp.cluster import Pods
from tests.kfp.runs import Runs, Seen

SHORT = {"preset": "digits", "epochs": 2, "gate": "none", "settings": {"select": "none", "checkpoint_seconds": 5}}
"""A training of seconds; gate none, for two epochs are no good model."""


class Skipped(Exception):  # noqa: N818
    """Says why a case cannot be tried in this cluster."""


@dataclass(frozen=True)
class Case:
    name: str
    expected: str  # what the page begins with
    parameters: dict[str, Any] = field(default_factory=dict)
    act: Callable[[Runs, Pods, str], None] | None = None  # on the run of this id, once it has a checkpoint
    tries: int = 1  # of the training, at least
    state: str = "SUCCEEDED"
    needs: str = ""  # pods, or trainer
    nodes: int = 1
    scheduled: bool = False

    def check_needs(self, pods: Pods) -> None:
        if self.needs == "pods" and (why := pods.unusable()):
            raise Skipped(why)
        if self.needs == "trainer" and (why := pods.no_trainer()):
            raise Skipped(why)

    def run(self, runs: Runs, pods: Pods, pipeline: Path) -> Seen:
        values = {**SHORT, **self.parameters, "settings": {**SHORT["settings"], **self.parameters.get("settings", {})}}
        run_id = runs.by_schedule(pipeline, values) if self.scheduled else runs.start(pipeline, values, self.name)
        if self.act is not None:
            runs.until_checkpoint(run_id)
            self.act(runs, pods, run_id)
        return runs.until_over(run_id)

    def fits(self, seen: Seen) -> bool:
        return seen.state == self.state and seen.tries >= self.tries and re.match(self.expected, seen.line) is not None


def long(seed: int) -> dict[str, Any]:
    """A training of its own that takes a minute or two: there is time to disturb it."""
    return {"epochs": 40, "settings": {"seed": seed}}


CASES = (
    Case("promoted", "Promoted r0000-"),
    Case("gate stopped", "Not promoted: stopped by the gate", {"gate": "labelled", "gate_settings": {"min_gain": 0.9}}),
    Case("nothing new", "Nothing new: ", {"only_new": True, "append": True}, tries=0),
    Case("wrong input", "Run failed: inputs: the input is wrong", {"model": "ViT-B-17"}, tries=0, state="FAILED"),
    Case(
        "worker killed", "Promoted r0000-", long(1), lambda runs, pods, run_id: pods.kill_worker(run_id), tries=2,
        needs="pods",
    ),
    Case(
        "pod deleted in training", "Promoted r0000-", long(2), lambda runs, pods, run_id: pods.delete(run_id), tries=2,
        needs="pods",
    ),
    Case(
        "terminated", "Run stopped from outside|Run failed: train: its pod is gone|Run broken off", long(3),
        lambda runs, pods, run_id: runs.terminate(run_id), state="FAILED",
    ),
    Case("two nodes", "Promoted r0000-", {"settings": {"seed": 4}}, needs="trainer", nodes=2),
    Case("schedule of a minute", "Nothing new: ", {"only_new": True, "append": True}, tries=0, scheduled=True),
)  # fmt: skip
