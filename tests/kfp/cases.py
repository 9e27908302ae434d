"""The ways a run can end, and what is done to it meanwhile."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from must_pipeline.cluster.config import Cluster
from tests.kfp.cluster import RETRIED, Pods
from tests.kfp.runs import Runs, Seen

SHORT = {"preset": "digits", "epochs": 2, "gate": "none", "settings": {"checkpoint_seconds": 5}}
"""A training of seconds; gate none, for two epochs are no good model."""

UNCHANGED = {"gate": "label-free", "settings": {"alpha": 0, "lr": 1e-12, "min_lr": 0.0}}
"""A training of which nothing is kept: no image changes its class, so the outcome is zero-shot."""

LONG, ON_GPU = 80, 200
"""Epochs of a training that is disturbed. On a GPU one loader process sets the pace; it must not be over too soon."""


LOST_RACE = "Run stopped from outside|Run failed: train: its pod is gone"
"""What a pod that vanishes comes to where Argo's setting does not repeat it."""


@dataclass(frozen=True)
class Case:
    name: str
    expected: str  # what the page begins with
    parameters: dict[str, Any] = field(default_factory=dict)
    act: Callable[[Any, str], None] | None = None  # of Pods or Runs, on a run that has a checkpoint
    tries: int = 1  # of the training, at least
    state: str = "SUCCEEDED"  # or several, as in A|B
    needs: str = ""  # pods, or trainer
    after: str = ""  # the case without which this one would end otherwise
    nodes: int = 1
    scheduled: bool = False
    vanishes: bool = False  # its pod does: what becomes of it depends on Argo's setting
    twice: bool = False  # a second run of the same is started beside it, and it is that one that is looked at

    def why_not(self, pods: Pods, cluster: Cluster) -> str:
        """Why it cannot be tried in this cluster; '' if it can."""
        if self.needs == "trainer":
            return pods.no_trainer(cluster.training.runtime)
        why = pods.unusable() if self.needs == "pods" else ""
        return why or ("cluster.yaml's retries.count is 0" if self.tries > 1 and not cluster.retries.count else "")

    def run(self, runs: Runs, pods: Pods, pipeline: Path) -> Seen:
        values = {**SHORT, **self.parameters, "settings": {**SHORT["settings"], **self.parameters.get("settings", {})}}
        if values["epochs"] == LONG and runs.cluster.uses_gpu("train"):
            values["epochs"] = ON_GPU
        before = runs.trainings()
        run_id = runs.start(pipeline, values, self.name, self.scheduled)
        if self.act is not None or self.twice:
            runs.until_checkpoint(run_id, before)
        if self.act is not None:
            self.act(runs if self.act is Runs.terminate else pods, run_id)
        second = runs.start(pipeline, values, f"{self.name}, the second") if self.twice else ""
        seen = runs.until_over(run_id)
        if second:
            return runs.until_over(second)
        return dataclasses.replace(seen, promised=pods.retries()) if self.vanishes else seen

    def fits(self, seen: Seen) -> bool:
        if self.vanishes and seen.promised != RETRIED and seen.state == "FAILED":  # a race that was lost
            return re.match(LOST_RACE, seen.line) is not None
        return (
            seen.state in self.state.split("|")
            and seen.tries >= self.tries
            and re.match(self.expected, seen.line) is not None
        )


def long(seed: int) -> dict[str, Any]:
    """A training of its own that takes minutes: there is time to disturb it."""
    return {"epochs": LONG, "settings": {"seed": seed, "workers": 1}}


CASES = (
    Case("promoted", "Promoted r0000-"),
    Case("zero-shot kept", "Kept zero-shot: .*nothing is promoted; the champion, r0000-", UNCHANGED, after="promoted"),
    Case("gate stopped", "Not promoted: stopped by the gate", {"gate": "labelled", "gate_settings": {"min_gain": 0.9}}),
    Case("nothing new", "Nothing new: ", {"only_new": True, "append": True}, tries=0, after="promoted"),
    Case("wrong input", "Run failed: inputs: the input is wrong", {"model": "ViT-B-17"}, tries=0, state="FAILED"),
    Case("worker killed", "Promoted r0000-", long(1), Pods.kill_worker, tries=2, needs="pods"),
    Case("pod deleted in training", "Promoted r0000-", long(2), Pods.delete, tries=2, needs="pods", vanishes=True),
    Case("pod evicted in training", "Promoted r0000-", long(5), Pods.evict, tries=2, needs="pods", vanishes=True),
    Case(
        "two runs at one place", "Promoted r0000-|Run stopped: another run, ", long(6), twice=True,
        state="SUCCEEDED|FAILED",
    ),
    Case("terminated", f"{LOST_RACE}|Run broken off", long(3), Runs.terminate, state="FAILED|CANCELED"),
    Case("two nodes", "Promoted r0000-", {"settings": {"seed": 4}}, needs="trainer", nodes=2),
    Case(
        "schedule of a minute", "Nothing new: ", {"only_new": True, "append": True}, tries=0, scheduled=True,
        after="promoted",
    ),
)  # fmt: skip
