"""`--compile`: the networks' blocks through torch.compile, where that works and is earned back."""

import logging
import time

import torch

from must.base.text import one_line, printable
from must.data.augment.normalize import normalize
from must.method.train.autotune import blank
from must.method.train.step import MustStep

logger = logging.getLogger(__name__)

BACKEND = "inductor"
# Steps from which `auto` compiles: it takes a minute or two, earned back at a tenth of a step of 0.3 s or more.
STEPS_THAT_PAY = 2000


def pays(asked: bool | str, device: str, steps: int) -> bool:
    """What `--compile` means on a device ("cuda", ...) with so many steps to come."""
    return asked is True or (asked == "auto" and device == "cuda" and steps >= STEPS_THAT_PAY)


def compile_blocks(must_step: MustStep, masked: int, images: int) -> str:
    """Compiles the blocks in place, for micro-batches of so many images. Names and values of parameters stay.

    `masked` is how many patches of an image are masked.

    Both networks are run once on such a batch, the student there and back; where that raises, the blocks run as they
    are, and the main process says so. Shapes are not dynamic: there are three graphs (of the teacher, the student, and
    the log's look at the student), however many blocks.

    Returns:
        Why it does not work here, in one line; '' if it does.
    """
    began, blocks = time.monotonic(), [*must_step.teacher.tower.blocks, *must_step.student.tower.blocks]
    why, say = "", logger.info if must_step.world.is_main else logger.debug
    try:
        for block in blocks:
            block.compile(backend=BACKEND, dynamic=False)
        run_once(must_step, masked, images)
        say(f"blocks compiled in {time.monotonic() - began:.0f} s; --no-compile runs them as they are")
    except Exception as error:  # of a Python that torch.compile does not know, the compiler, the driver, a kernel
        why = printable(one_line(error))[:200]
        for block in blocks:
            block._compiled_call_impl = None
        say(f"--compile: torch.compile fails here, so blocks run uncompiled: {why}")
    must_step.optimizer.zero_grad(set_to_none=True)
    return why


def run_once(must_step: MustStep, masked: int, images: int) -> None:
    """Both networks on black images, the student there and back, without the other processes' part of it."""
    batch = blank(images, must_step.preprocess.size, masked).to(must_step.world.device)
    must_step.pseudo_labels(batch)
    with must_step.autocast():
        output = must_step.student(normalize(batch.strong, must_step.preprocess), batch.masked)
    torch.stack([part.float().sum() for part in output]).sum().backward()
    if must_step.world.device.type == "cuda":
        torch.cuda.synchronize(must_step.world.device)
