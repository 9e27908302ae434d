"""`must plan --gpu`: calculates a run on GPUs that this machine does not have; only the loaders' speed is measured."""

import re
import time
from dataclasses import dataclass
from typing import Final, NamedTuple

from must.base.parameters import require
from must.base.text import did_you_mean
from must.data.loading.loader import TrainDataset
from must.method.train.autotune import MEMORY_SHARE, pixel_bytes
from must.method.train.estimate import GB, Size, duration

# The time of a step is that of its matrix products plus that of its memory transfers. Large products reach some 70% of
# the data sheet, transfers 85% (assumed). Published trainings reach 65 to 95% of that: see docs/training.md.
PRODUCTS, COPIES, REACHED = 0.7, 0.85, (0.65, 0.95)
MOVED_BYTES = 88  # per token, block and unit of width of a forward pass: bf16, residuals in float32 (docs/training.md)
FORWARDS = 4  # the work of a step in forward passes: teacher 1, student forward 1, backward 2
ACCUMULATION_FACTOR = 5 / 4  # of the work, with gradient accumulation: the student's extra forward pass
STATE_BYTES = 24  # per parameter in float32: weight, teacher, gradient, two moments, DDP's bucket
ACTIVATION_BYTES = 60  # per token, block and unit of width, kept for the backward pass by bf16 autocast
LAUNCH = 5e-6  # seconds that the host takes to queue an operation, assumed; small models wait for it
# Operations of a step, and besides of each block; tests/method/train/test_waiting.py counts them.
LAUNCHES = (70, 134)
SPEED_TEST_SECONDS = 1.0  # of the measurement of the loaders' speed


class Card(NamedTuple):
    """A GPU, by its manufacturer's data sheet."""

    tflops: float  # dense bf16 (fp16 where there is no bf16), summed in float32
    memory: float  # GB
    bandwidth: float  # GB/s


CARDS: Final[dict[str, Card]] = {
    "b200": Card(2250, 180, 8000),
    "h200": Card(989, 141, 4800),  # SXM, also the next one
    "h100": Card(989, 80, 3350),
    "mi300": Card(1307, 192, 5300),  # MI300X
    "a100": Card(312, 80, 2039),  # SXM
    "a100-40": Card(312, 40, 1555),
    "l40s": Card(362, 48, 864),
    "l4": Card(121, 24, 300),
    "a10": Card(125, 24, 600),
    "t4": Card(65, 16, 300),
    "rtx4090": Card(165, 24, 1008),
    "rtx3090": Card(71, 24, 936),
}


@dataclass(frozen=True)
class Shape:
    """The dimensions of an image tower."""

    size: int  # pixels a side of an image
    patch: int
    width: int
    layers: int

    @property
    def tokens(self) -> int:
        return (self.size // self.patch) ** 2 + 1

    @property
    def forward_flops(self) -> float:
        """For one image: 2 x (patch embedding + blocks of 12 W^2 a token + attention's two products of (L + 1)^2 W)."""
        W, T = self.width, self.tokens
        return 2 * ((T - 1) * W * 3 * self.patch**2 + self.layers * (12 * W * W * T + 2 * T * T * W))

    def seconds(self, card: Card, forwards: float) -> float:
        """The least seconds for the work of so many forward passes of one image; a backward pass counts as two."""
        moved = MOVED_BYTES * self.tokens * self.width * self.layers
        products = self.forward_flops / (PRODUCTS * card.tflops * 1e12)
        return forwards * (products + moved / (COPIES * card.bandwidth * 1e9))

    def activation_bytes(self, checkpointing: bool) -> float:
        """Bytes for one image, about; with activation checkpointing all block inputs and one block's activations."""
        block = ACTIVATION_BYTES * self.tokens * self.width
        return self.layers * 4 * self.tokens * self.width + block if checkpointing else self.layers * block


def parse_gpus(text: str) -> tuple[str, int]:
    """'h100x8' -> ('h100', 8). Raises ValueError: no such card is in the table, or there are none of it."""
    match = re.fullmatch(r"(.+?)(?:x(\d+))?", text.strip().lower())
    name, count = (match[1], int(match[2] or 1)) if match else ("", 0)
    if name not in CARDS and text.strip().lower() in CARDS:
        name, count = text.strip().lower(), 1
    require(name in CARDS, f"--gpu {text}: unknown card; {did_you_mean(name, list(CARDS))}, and xN for N of them")
    require(count >= 1, f"--gpu {text}: takes at least one card")
    return name, count


@dataclass(frozen=True)
class Calculated:
    """A calculated run on other GPUs. Only `core_images_per_s` is measured."""

    card: str
    gpus: int
    images_per_s: tuple[float, float]  # lowest and highest, as `seconds`
    launching: bool  # the host's launches take longer than the GPU's arithmetic
    seconds: tuple[float, float]
    share: tuple[float, float]  # of the peak
    micro_batches: int  # of each process; 0: not one image fits
    memory: float  # GB of each GPU
    image_bytes: float
    core_images_per_s: float  # measured on this machine

    @property
    def cores(self) -> float:
        """The number of cores that prepare images as fast as the GPUs can take them."""
        return self.images_per_s[1] / self.core_images_per_s

    def lines(self, size: Size) -> list[str]:
        card = CARDS[self.card]
        name = f"{self.card} x {self.gpus}"
        low, high = (f"{100 * share:.0f}" for share in self.share)
        speed = f"{between(*(f'{value:,.0f}' for value in self.images_per_s))} images/s, which is " + (
            "what the host can launch" if self.launching else f"{low} to {high}% of {card.tflops:g} TFLOP/s a GPU"
        )
        if not self.micro_batches:
            return [
                f"{name}: calculated: not even one image a step fits: {self.memory:.3g} of {card.memory:g} GB; try "
                "--activation-checkpointing, --parallel fsdp (not in this arithmetic) or a smaller model"
            ]
        pieces = f" in {self.micro_batches} micro-batches (--accumulate auto)" if self.micro_batches > 1 else ""
        return [
            f"{name}: calculated, not measured: {between(*map(duration, self.seconds))} for "
            f"{size.steps:,} steps compiled, "
            f"{speed}; memory: about {self.memory:.2g} of {card.memory:g} GB{pieces}",
            f"{name}: needs {self.cores:.0f} cores like this machine's, each of which prepares "
            f"{self.core_images_per_s:.0f} of these images/s (measured), and "
            f"{self.images_per_s[1] * self.image_bytes / GB:.2g} GB/s of shards; "
            "with fewer cores --views fast",
        ]


def between(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def calculate(gpus: str, shape: Shape, size: Size, checkpointing: bool, core_images_per_s: float) -> Calculated:
    """`size`: of the run; its processes and micro-batches, those of this machine, are ignored."""
    name, count = parse_gpus(gpus)
    require(size.batch_size % count == 0, f"--gpu {gpus}: --batch-size {size.batch_size} does not divide by {count}")
    local, card = size.batch_size // count, CARDS[name]
    fixed = STATE_BYTES * size.parameters + local * pixel_bytes(shape.size)
    image = shape.activation_bytes(checkpointing)
    fitting = (pieces for pieces in range(1, local + 1) if local % pieces == 0)
    pieces = next((p for p in fitting if fixed + image * (local // p) <= MEMORY_SHARE * card.memory * GB), 0)
    forwards = FORWARDS * (ACCUMULATION_FACTOR if pieces > 1 or checkpointing else 1)
    computing = local * shape.seconds(card, forwards)
    launching = LAUNCH * max(pieces, 1) * (LAUNCHES[0] + LAUNCHES[1] * shape.layers)
    slow, fast = (max(computing / reached, launching) for reached in REACHED)
    peak = count * card.tflops * 1e12 / (size.batch_size * forwards * shape.forward_flops)  # steps a second
    return Calculated(
        card=name,
        gpus=count,
        images_per_s=(size.batch_size / slow, size.batch_size / fast),
        launching=fast == launching,
        seconds=(size.steps * fast, size.steps * slow),
        share=(1 / (slow * peak), 1 / (fast * peak)),
        micro_batches=pieces,
        memory=(fixed + image * (local // (pieces or local))) / GB,
        image_bytes=size.shards_bytes / max(size.images, 1),
        core_images_per_s=core_images_per_s,
    )


def core_speed(dataset: TrainDataset, images: int = 256) -> float:
    """Images per second that one process on this machine prepares, measured on the run's data."""
    dataset[(0, 0)]  # initialization, not timed
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < SPEED_TEST_SECONDS and count < images:
        dataset[(0, count % len(dataset.reader))]
        count += 1
    return count / (time.perf_counter() - began)
