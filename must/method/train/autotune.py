"""What suits the machine: loader processes, gradient accumulation that fits into a GPU's memory, compiled blocks."""

import logging
import time

import torch

from must.base.errors import UserError
from must.base.text import one_line, printable
from must.data.augment.normalize import normalize
from must.data.loading.loader import PREFETCH, TrainBatch
from must.method.distributed.cpu import division, loader_processes
from must.method.distributed.parallel import to_local
from must.method.train.step import MustStep

logger = logging.getLogger(__name__)

MEMORY_SHARE = 0.85  # of the free memory that a step may take, as memory is fragmented
TRIAL = 8  # images of the smaller trial; the larger one has twice as many
BACKEND = "inductor"
# Steps from which `auto` compiles: it takes a minute or two, and saves a tenth of steps of 0.3 s or more.
STEPS_THAT_PAY = 2000


def choose_loaders(must_step: MustStep, images: int) -> int:
    """The number of loader processes; `images`: per batch of a loader process."""
    if must_step.world.device.type == "cpu":
        return division(must_step.work).loaders
    return loader_processes(PREFETCH * images * pixel_bytes(must_step.preprocess.size))


def pixel_bytes(size: int) -> int:
    """Bytes of an image's two views."""
    return 2 * size * size * 3


def choose_micro_batches(must_step: MustStep, masked: int, local: int, previous: int) -> int:
    """The number of micro-batches of the `local` images of a process's step; the same in all processes.

    On a CUDA GPU the smallest that fits: two trial steps, whose results are discarded, measure the memory of an image.
    On other devices 1, as there the memory is the machine's.
    `masked`: number of masked patches of an image. `previous`: images of a micro-batch of the resumed run, which does
    not change (sums in another order differ in the last bits); 0: a new run.
    Raises ValueError: not even one image fits."""
    if previous and local % previous == 0:
        return local // previous
    if must_step.world.device.type != "cuda":
        return 1
    fixed, per_image, free = zip(*must_step.world.gather(measured(must_step, masked, local)), strict=True)
    return fewest_micro_batches(local, max(fixed), max(per_image), min(free))


def fewest_micro_batches(local: int, fixed: float, per_image: float, free: float) -> int:
    """The smallest divisor of `local` such that `fixed` bytes and a micro-batch's fit into MEMORY_SHARE of `free`."""
    for count in (number for number in range(1, local + 1) if local % number == 0):
        if fixed + per_image * (local // count) <= MEMORY_SHARE * free:
            return count
    raise UserError(
        f"--accumulate auto: not even one image a step fits: it takes {(fixed + per_image) / 1e9:.3g} GB, and "
        f"{MEMORY_SHARE * free / 1e9:.3g} GB of the GPU's memory can be used; try --activation-checkpointing, several "
        "processes with --parallel fsdp, or a smaller model"
    )


def measured(must_step: MustStep, masked: int, local: int) -> tuple[float, float, float]:
    """(bytes of a step that do not depend on the micro-batch, bytes per image, free bytes), measured by trial steps."""
    small = min(TRIAL, local)
    few_bytes, many_bytes = (trial(must_step, masked, images) for images in (small, 2 * small))
    per_image = max(many_bytes - few_bytes, 0) / small
    parameters = [to_local(value) for group in must_step.optimizer.param_groups for value in group["params"]]
    moments = sum(2 * value.numel() * value.element_size() for value in parameters)  # of AdamW, after a first step
    views = local * pixel_bytes(must_step.preprocess.size)  # all micro-batches of a step are on the device
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(must_step.world.device)
    return max(few_bytes - per_image * small, 0) + moments + views, per_image, free


def trial(must_step: MustStep, masked: int, images: int) -> int:
    """Peak bytes of a forward and backward pass, above those allocated before. Changes no weight."""
    device = must_step.world.device
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    must_step.differentiate([blank(images, must_step.preprocess.size, masked).to(device)])
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    must_step.optimizer.zero_grad(set_to_none=True)
    return peak


def blank(images: int, size: int, masked: int) -> TrainBatch:
    """A batch of black images whose first patches are masked."""
    pixels = torch.zeros(images, size, size, 3, dtype=torch.uint8)
    patches = torch.arange(masked).expand(images, masked).contiguous()
    return TrainBatch(pixels, pixels.clone(), patches, torch.zeros(images, dtype=torch.int64), torch.tensor(0))


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
