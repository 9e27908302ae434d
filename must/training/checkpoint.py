"""Checkpoints, and the state of a run besides its networks: its progress, its log, and when a checkpoint is due.

Checkpoints are named by step, complete or ignored, checked by sha256, written in the background.
``step-000000400.pt`` holds the state, ``step-000000400.json`` (written after it) its size and sha256; ``LAST`` names
the newest. A checkpoint without a matching description is ignored. The order is that of steps, not of file times."""

import hashlib
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Self, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from must.base import storage
from must.base.errors import UserError
from must.base.lock import CannotLockError, Kind, LockLostError, locked
from must.base.parameters import require
from must.config import TrainConfig
from must.config.work import LAST_FILE
from must.data.format import Index
from must.model.classifier import TextClassifier
from must.model.distributed import World
from must.training.recipe import run_identity
from must.training.step import MustStep

logger = logging.getLogger(__name__)


CHECKPOINT_NAME = re.compile(r"step-(\d{9})\.(json|pt)")
CHECKPOINTS_LOCK = Kind("must train", "--checkpoints", ".train.lock", timeout=10.0)
FAILURES = 2  # failed writes in a row after which training stops: a full disk or a bucket's failure may be temporary


class Checkpoints:
    """The checkpoints of one run in a folder or under a gs:// prefix. One process writes there.

    `keep`: how many of the newest to keep."""

    def __init__(self, uri: str, keep: int = 2) -> None:
        self.uri, self.keep = uri, keep
        self.check_lock: Callable[[], None] = lambda: None  # raises LockLostError once another run writes here
        self._buffers: list[Any] = []
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._failures: list[Exception] = []  # of the writes since the last successful one

    @property
    def busy(self) -> bool:
        """Whether an earlier state is still being written."""
        return self._pending is not None and not self._pending.done()

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copies `state` to host memory and writes it in the background, after an earlier write is done. A failed write
        is logged and training goes on; if the next one fails too, `save` raises its error."""
        self._finish_pending()
        if len(self._failures) >= FAILURES or any(isinstance(error, LockLostError) for error in self._failures):
            raise self._failures[-1]
        self._pending = self._writer.submit(self._try_to_write, step, self._copy(state))

    def _copy(self, state: dict[str, Any]) -> dict[str, Any]:
        """A deep copy with every tensor in host memory, which the next call overwrites: allocating memory takes longer
        than the copy. For a GPU it is pinned, so that all copies are queued at once and the host waits a single time.
        """
        values, structure = tree_flatten(state)
        buffers = self._buffers if len(self._buffers) == len(values) else [None] * len(values)
        self._buffers = [copy_to(old, value) for old, value in zip(buffers, values, strict=True)]
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        elif torch.backends.mps.is_available():
            torch.mps.synchronize()
        return tree_unflatten(self._buffers, structure)

    def wait(self) -> None:
        """Returns when the last state is on disk. Raises the error of its write."""
        self._finish_pending()
        if self._failures:
            raise self._failures[-1]

    def close(self) -> None:
        self.wait()
        self._writer.shutdown()

    def _finish_pending(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _try_to_write(self, step: int, state: dict[str, Any]) -> None:
        try:
            self._write(step, state)
            self._failures.clear()
        except (ValueError, OSError) as error:
            self._failures.append(error)
            logger.warning(f"the checkpoint of step {step} could not be written: {error}")

    def _write(self, step: int, state: dict[str, Any]) -> None:
        name = f"step-{step:09d}"
        self.check_lock()
        with storage.open_write(storage.join(self.uri, f"{name}.pt")) as file:
            state_file = StateFile(file)
            try:
                torch.save(state, cast(IO[bytes], state_file))
            except RuntimeError as error:  # torch raises it for any error of the file, such as a full disk
                raise (state_file.error or error) from None
        self.check_lock()  # again, as writing may take long
        description = {"step": step, "bytes": state_file.size, "sha256": state_file.sha256}
        storage.write_bytes(storage.join(self.uri, f"{name}.json"), json.dumps(description).encode())
        storage.write_bytes(storage.join(self.uri, LAST_FILE), name.encode())
        self._tidy(step)

    def _tidy(self, step: int) -> None:
        """Removes old checkpoints once `step` is complete. Later steps are of an abandoned run (--no-resume, or a
        damaged checkpoint was skipped). A state without a description is an incomplete write of a killed process."""
        files = self._files()
        complete = sorted(number for number, ending in files if ending == "json" and number <= step)
        for number in {number for number, _ in files} - set(complete[-self.keep :]):
            self.remove(number)

    def _files(self) -> list[tuple[int, str]]:
        """(step, "pt" or "json") of every file."""
        names = [CHECKPOINT_NAME.fullmatch(entry.name) for entry in storage.list_existing(self.uri)]
        return [(int(match.group(1)), match.group(2)) for match in names if match]

    def steps(self) -> list[int]:
        """Steps that have a description, ascending."""
        return sorted(step for step, ending in self._files() if ending == "json")

    def remove(self, step: int) -> None:
        for ending in ("json", "pt"):  # the description first, so that the rest of an interrupted removal is ignored
            storage.delete(storage.join(self.uri, f"step-{step:09d}.{ending}"))

    def remove_leftovers(self) -> None:
        """Removes temporary files of killed processes from a local folder; only while nothing is written there."""
        if not storage.is_remote(self.uri):
            for path in storage.local(self.uri).glob(f"{storage.TEMPORARY}*"):
                path.unlink(missing_ok=True)

    @contextmanager
    def newest(self) -> Iterator[Path | None]:
        """A local path of the newest complete checkpoint inside the block, or None. Damaged ones are skipped with a
        warning. Any other failure to read one is an error: resuming from an older one would delete the newer ones."""
        with ExitStack() as stack:
            for step in reversed(self.steps()):
                try:
                    path = stack.enter_context(self._verified(step))
                except (DamagedCheckpointError, FileNotFoundError) as error:
                    warnings.warn(f"checkpoint skipped: {error}", stacklevel=4)
                    continue
                yield path
                return
            yield None

    @contextmanager
    def _verified(self, step: int) -> Iterator[Path]:
        uri, description = (storage.join(self.uri, f"step-{step:09d}.{ending}") for ending in ("pt", "json"))
        damaged = DamagedCheckpointError(f"{description} is damaged")
        sha256 = storage.read_object(description, lambda content: content["sha256"], damaged)
        with storage.local_copy(uri) as path:
            if storage.compute_sha256(path) != sha256:
                raise DamagedCheckpointError(f"{uri} is damaged: its sha256 differs")
            yield path


class DamagedCheckpointError(UserError):
    """A checkpoint differs from what was written."""


def load_state(path: Path) -> dict[str, Any]:
    """The state in a file whose checksum matches, and which may yet be another program's."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception:
        state = None
    if not isinstance(state, dict) or "progress" not in state:
        raise DamagedCheckpointError(
            f"{path}: is no checkpoint of `must train`; delete it, or start over with --no-resume"
        )
    return state


class StateFile(storage.HashingFile):
    """A file that the state is written to directly, without a copy in memory. Keeps the `error` of writing."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def copy_to(old: Any, value: Any) -> Any:
    """A tensor copied to host memory, to that of `old` if it fits; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    if not isinstance(old, Tensor) or old.shape != value.shape or old.dtype != value.dtype:
        old = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
    return old.copy_(value.detach(), non_blocking=True)


@contextmanager
def exclusive_checkpoints(checkpoints: Checkpoints, world: World) -> Iterator[None]:
    """Prevents other runs from writing to the checkpoints inside the block. The main process holds the lock; if another
    run has it, every process raises."""
    with ExitStack() as stack:
        problem: Exception | None = None
        if world.is_main:
            try:
                checkpoints.check_lock = stack.enter_context(locked(checkpoints.uri, CHECKPOINTS_LOCK))
            except CannotLockError as error:
                logger.warning(f"warning: {error}; two runs that write there would not be noticed")
            except (ValueError, OSError) as error:
                problem = error
        if any(world.gather(problem is not None)):
            raise problem or UserError(f"{checkpoints.uri}: rank 0 cannot lock this folder; its log has the reason")
        yield


@contextmanager
def newest_checkpoint(checkpoints: Checkpoints, world: World) -> Iterator[Path | None]:
    """A local path of the newest complete checkpoint, or None; in every process, while all are in the block.

    The first process of each machine copies a remote one, and the machine's other processes read the copy."""
    machine, is_first = os.environ.get("GROUP_RANK", "0"), world.is_main or os.environ.get("LOCAL_RANK") == "0"
    with checkpoints.newest() if is_first else nullcontext() as path:
        yield dict(pair for pair in world.gather((machine, path) if is_first else None) if pair)[machine]
        world.gather(None)  # the others have read it


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
            "classifier": hash_tensors([classifier.weights]),
            "image tower": hash_tensors(visual.parameters()),
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


def hash_tensors(tensors: Iterable[Tensor]) -> str:
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
