"""The checks, what this machine can run of them, and the table of what was found."""

import importlib.util
import json
import logging
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NamedTuple

import must
from must.base import storage
from must.base.parameters import require
from must.base.text import did_you_mean, printable

logger = logging.getLogger(__name__)

PASS, FAIL, NOT_TRIED = "pass", "fail", "not tried"


class Check(NamedTuple):
    function: str  # "module:name" in must.api.verify, or with an argument "module:name:argument"
    title: str
    gpus: int = 1  # that it takes at least
    seconds: int = 120  # after which it has failed
    hub: bool = False  # needs pretrained weights, and so a network
    long: bool = False  # only with --long


CHECKS: Final[dict[str, Check]] = {
    "precision": Check("steps:precision", "bf16 losses follow those of float32"),
    "waits": Check("steps:waits", "the host waits for nothing in a step, or in views on the GPU"),
    "views": Check("steps:views", "views on the GPU are near the exact ones"),
    "compile": Check("steps:compiled", "compiled blocks give the same losses", seconds=240),
    "accumulate": Check("steps:accumulate", "--accumulate auto finds a step that fits"),
    "resume": Check("runs:resume", "a run that was killed goes on to the same model", seconds=240),
    "gpus": Check("runs:all_gpus", "all GPUs together take the steps of one", gpus=2, seconds=240),
    "resume-all": Check("runs:resume:all", "so does one on all GPUs", gpus=2, seconds=240),
    "fsdp": Check("runs:fsdp", "--parallel fsdp takes the steps of ddp", gpus=2, seconds=240),
    "attention": Check("speed:attention", "attention runs as one fused kernel"),
    "speed-b32": Check(
        "speed:speed:ViT-B-32-quickgelu", "ViT-B/32: speed beside a plain PyTorch loop, memory", seconds=180
    ),
    "speed-b16": Check(
        "speed:speed:ViT-B-16-quickgelu", "ViT-B/16: speed beside a plain PyTorch loop, memory", seconds=180
    ),
    "speed-l14": Check(
        "speed:speed:ViT-L-14-quickgelu", "ViT-L/14: speed beside a plain PyTorch loop, memory", seconds=180
    ),
    "loaders": Check("speed:loaders", "images a second that the loaders prepare"),
    "zero-shot": Check(
        "weights:zero_shot:cifar10", "OpenAI's ViT-B/16 on CIFAR-10: published accuracy", seconds=900, hub=True
    ),
    "pets": Check("weights:zero_shot:pets", "the same on Oxford-IIIT Pets", seconds=900, hub=True),
    "adaptation": Check(
        "weights:adaptation:cifar10",
        "one adaptation of it, about half an hour; kappa and z",
        seconds=5400,
        hub=True,
        long=True,
    ),
}


@dataclass
class Outcome:
    check: str
    status: str
    detail: str  # one line
    values: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def verify(json_file: str = "", only: Sequence[str] = (), long: bool = False, device: str = "cuda") -> list[Outcome]:
    """Runs what can be run here, a line each, and writes the same to `json_file`.

    Args:
        device: cuda, or cpu for a trial of the checks with tiny models.

    Raises:
        ValueError: no such check or device, or the file cannot be written.
    """
    require(device in ("cuda", "cpu"), f"--device {device}: must be cuda or cpu")
    for name in only:
        require(name in CHECKS, f"--only {name}: unknown; {did_you_mean(name, list(CHECKS))}")
    names = [name for name in CHECKS if name in only or not only]
    require(importlib.util.find_spec("torch") is not None, "needs torch: pip install 'must-clip[train]'")
    import torch

    gpus = torch.cuda.device_count() if device == "cuda" else 2
    about = machine(gpus if device == "cuda" else 0)
    logger.info(f"must verify: {about['gpus'][0]['name'] + f' x {gpus}' if about['gpus'] else 'no CUDA GPU'}, "
          f"torch {about['versions']['torch']}, must {must.__version__}")  # fmt: skip
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="must-verify-") as folder:
        hub = gpus > 0 and any(CHECKS[name].hub for name in names) and device == "cuda" and hub_answers()
        for name in names:
            reason = why_not(CHECKS[name], device, gpus, hub, long or name in only)
            outcome = Outcome(name, NOT_TRIED, reason) if reason else run(name, device, gpus, Path(folder))
            outcomes.append(outcome)
            logger.info(line(outcome))
    count = {status: sum(found.status == status for found in outcomes) for status in (PASS, FAIL, NOT_TRIED)}
    logger.info(", ".join(f"{number} {status}" for status, number in count.items()))
    if json_file:
        content = {"machine": about, "device": device, "checks": [asdict(outcome) for outcome in outcomes]}
        storage.write_bytes(json_file, json.dumps(content, indent=1).encode())
        logger.info(f"{json_file}: attach it to an issue")
    return outcomes


def why_not(check: Check, device: str, gpus: int, hub: bool, long: bool) -> str:
    """Why a check cannot run here; '' if it can."""
    if check.long and not long:
        return "takes long: --long"
    if not gpus:
        return "there is no CUDA GPU here"
    if gpus < check.gpus:
        return f"takes {check.gpus} GPUs"
    if check.hub and device == "cpu":
        return "takes a GPU"
    return "no hub can be reached from here" if check.hub and not hub else ""


def run(name: str, device: str, gpus: int, folder: Path) -> Outcome:
    """The check in a process of its own, in `folder`, which the checks share."""
    result, log = folder / f"{name}.json", folder / f"{name}.log"
    command = [sys.executable, "-m", "must.api.verify.single", CHECKS[name].function, device, str(gpus), str(result)]
    began, limit = time.monotonic(), CHECKS[name].seconds * (1 if device == "cuda" else 10)  # a CPU is no measure
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder, start_new_session=True)
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            return Outcome(name, FAIL, f"did not end within {limit} s; {last_line(log)}", seconds=float(limit))
        finally:
            end_group(process)
    seconds = round(time.monotonic() - began, 1)
    if process.returncode or not result.is_file():
        return Outcome(name, FAIL, f"ended with code {process.returncode}; {last_line(log)}", seconds=seconds)
    found = json.loads(result.read_text())
    return Outcome(name, found["status"], found["detail"], found["values"], seconds)


def end_group(process: subprocess.Popen) -> None:
    """Also what the check has started: the session is its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return printable(lines[-1])[:300] if lines else "it printed nothing"


def line(outcome: Outcome) -> str:
    took = f" ({outcome.seconds:.0f} s)" if outcome.status != NOT_TRIED else ""
    return f"{outcome.status:9}  {outcome.check:10}  {CHECKS[outcome.check].title}: {outcome.detail}{took}"


def machine(gpus: int) -> dict[str, Any]:
    """What an issue must say of the machine. No names of hosts or users."""
    import torch

    cards = []
    for number in range(gpus):
        card = torch.cuda.get_device_properties(number)
        cards.append({"name": card.name, "memory": card.total_memory, "capability": f"{card.major}.{card.minor}"})
    packages = ("torch", "torchvision", "open_clip_torch", "timm", "pillow", "numpy")
    return {
        "gpus": cards,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "versions": {"must": must.__version__, "python": platform.python_version(), "cuda": torch.version.cuda}
        | {name: metadata.version(name) for name in packages},
    }


def hub_answers() -> bool:
    """Whether Hugging Face's hub, or the one of HF_ENDPOINT, gives an answer."""
    import urllib.error
    import urllib.request

    try:
        urllib.request.urlopen(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=10).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True
