"""`--compile`: compiles the networks' blocks with torch.compile, where that works and saves time."""

import logging
import time

import torch

from must.base.text import one_line, printable
from must.data.augment.normalize import normalize
from must.method.train.autotune import blank
from must.method.train.step import MustStep

logger = logging.getLogger(__name__)

BACKEND = "inductor"
# Steps from which `auto` compiles: it takes a minute or two, and saves a tenth of steps of 0.3 s or more.
STEPS_THAT_PAY = 2000


def should_compile(setting: bool | str, device: str, steps: int) -> bool:
    """Whether to compile, by the setting of --compile, on a device ("cuda", ...) with so many remaining steps."""
    return setting is True or (setting == "auto" and device == "cuda" and steps >= STEPS_THAT_PAY)


def compile_blocks(must_step: MustStep, masked: int, images: int) -> str:
    """Compiles the blocks in place, for micro-batches of `images` images with `masked` masked patches each. Names and
    values of parameters do not change.

    Both networks are run once on such a batch, the student also backward; if that raises, the blocks run uncompiled,
    and the main process logs it. Shapes are not dynamic: there are three graphs (of the teacher, the student, and the
    student's predictions for the log), for any number of blocks.
    Returns the reason in one line if torch.compile fails; '' if it works."""
    began, blocks = time.monotonic(), [*must_step.teacher.tower.blocks, *must_step.student.tower.blocks]
    problem, log = "", logger.info if must_step.world.is_main else logger.debug
    try:
        for block in blocks:
            block.compile(backend=BACKEND, dynamic=False)
        run_once(must_step, masked, images)
        log(f"blocks compiled in {time.monotonic() - began:.0f} s; --no-compile runs them as they are")
    except Exception as error:  # of the compiler, the driver or a kernel, or an unsupported Python
        problem = printable(one_line(error))[:200]
        for block in blocks:
            block._compiled_call_impl = None
        log(f"--compile: torch.compile fails here, so blocks run uncompiled: {problem}")
    must_step.optimizer.zero_grad(set_to_none=True)
    return problem


def run_once(must_step: MustStep, masked: int, images: int) -> None:
    """Both networks on black images, the student also backward, without communication between processes."""
    batch = blank(images, must_step.preprocess.size, masked).to(must_step.world.device)
    must_step.pseudo_labels(batch)
    with must_step.autocast():
        output = must_step.student(normalize(batch.strong, must_step.preprocess), batch.masked)
    torch.stack([part.float().sum() for part in output]).sum().backward()
    if must_step.world.device.type == "cuda":
        torch.cuda.synchronize(must_step.world.device)
