"""The state of a run besides its networks: its progress, its log, the checkpoints that it may resume from, and
when one is due."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from must.base import storage
from must.base.parameters import require
from must.config import TrainConfig
from must.data.format.index import Index
from must.method.model.classifier import TextClassifier
from must.method.train.checkpoint import Checkpoints, load_state, newest_checkpoint
from must.method.train.recipe import run_identity
from must.method.train.step import MustStep

Item = TypeVar("Item")
SHARE = 20  # an interval is at least so many times the seconds that the last checkpoint stopped training


@dataclass
class TrainProgress:
    """Counters and chosen settings of a run."""

    step: int = 0
    skipped: int = 0  # steps without finite gradients
    replaced: int = 0  # samples that could not be decoded
    seconds: float = 0.0
    waited: float = 0.0  # of `seconds`, for data
    saving: float = 0.0  # of `seconds`, for checkpoints
    precision: str = ""  # of the networks' arithmetic; "" until it is chosen
    threads: int = 0  # of torch, in each process on a CPU; 0 on a GPU, and until it is chosen


@dataclass
class TrainState:
    """Saves to, and resumes from, the checkpoints of one run."""

    checkpoints: Checkpoints
    identity: dict[str, Any]
    progress: TrainProgress = field(default_factory=TrainProgress)
    log_lines: list[dict[str, Any]] = field(default_factory=list)  # of all the run; checkpoints contain them

    @classmethod
    def start(cls, config: TrainConfig, index: Index, classifier: TextClassifier, visual: nn.Module) -> Self:
        """`visual`: the zero-shot model's image tower."""
        weights = {
            "classifier": weights_sha256([classifier.weights]),
            "image tower": weights_sha256(visual.parameters()),
        }
        uri = config.checkpoints or storage.join(config.output, "checkpoints")
        identity = run_identity(config, index.sha256, weights, classifier.shares)
        return cls(Checkpoints(uri, config.keep_checkpoints), identity)

    def save(self, must_step: MustStep) -> dict[str, Any]:
        """Starts writing a checkpoint in the background, and returns the networks' state. Every process calls this; the
        main one writes."""
        state = must_step.state_dict()
        if must_step.world.is_main:
            run = {"identity": self.identity, "progress": asdict(self.progress), "log": json.dumps(self.log_lines)}
            self.checkpoints.save(self.progress.step, run | state)
        return state

    def resume(self, must_step: MustStep) -> bool:
        """Resumes from the newest complete checkpoint. False: there is none."""
        if must_step.world.is_main:
            self.checkpoints.remove_leftovers()
        with newest_checkpoint(self.checkpoints, must_step.world) as path:
            state = load_state(path) if path else None
        steps = must_step.world.gather(state["progress"]["step"] if state else 0)
        require(  # else they would train different models, or hang
            max(steps) == min(steps),
            f"{self.checkpoints.uri}: some processes find a checkpoint of step {max(steps)} there, others one of step "
            f"{min(steps)} (0: none); --checkpoints must be a place that all nodes see",
        )
        if state is None:
            return False
        new, old = self.identity, state["identity"]
        changed = [f"{name} ({old.get(name)} -> {new[name]})" for name in new if old.get(name) != new[name]]
        require(
            not changed,
            f"{self.checkpoints.uri}: holds checkpoints of a run with other settings: {', '.join(changed[:5])}; "
            "use those, another --checkpoints, or --no-resume to start over",
        )
        self.progress = TrainProgress(**state["progress"])
        self.log_lines = json.loads(state["log"])
        must_step.load_state_dict(state)
        return True


def weights_sha256(tensors: Iterable[Tensor]) -> str:
    """The first 16 digits of the sha256 of the tensors' bytes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


class RunTimer:
    """Adds to the times in `progress`, which checkpoints contain, and says when one is due by time: often enough that a
    kill costs a minute, and rarely enough to cost little. It starts when it is created.

    `seconds`: between two checkpoints; 0: none is due. Only the main process's counts."""

    def __init__(self, progress: TrainProgress, seconds: float = 0) -> None:
        self.progress, self.seconds, self.cost, self.requested = progress, seconds, 0.0, False
        self.since = self.saved = time.monotonic()

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items; the time until each arrives counts as waiting for data."""
        began = time.monotonic()
        for item in items:
            self.progress.waited += time.monotonic() - began
            yield item
            began = time.monotonic()

    def read(self) -> None:
        """Updates `progress.seconds`."""
        now = time.monotonic()
        self.progress.seconds += now - self.since
        self.since = now

    def due(self, busy: bool) -> bool:
        """Whether to save now; true once per checkpoint. `busy`: the last checkpoint is still being written."""
        if not self.seconds or busy or self.requested:
            return False
        self.requested = time.monotonic() - self.saved >= max(self.seconds, SHARE * self.cost)
        return self.requested

    def save(self, save: Callable[[], object]) -> None:
        """Calls `save`, with `progress` up to date, and adds its seconds to `progress.saving`."""
        self.read()
        save()
        self.saved, self.requested = time.monotonic(), False
        self.cost = self.saved - self.since
        self.progress.saving += self.cost
