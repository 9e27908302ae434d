"""Scaling on paper: a step's time on many GPUs from the speed of one, the links' speed and the model's size.

    python benchmarks/scaling.py                      the tables of docs/scaling.md
    python benchmarks/scaling.py --mfu 0.3 --node-link 12.5 --images-per-gpu 64

Nothing here is measured. DDP sums the gradients bucket by bucket while the backward pass runs; what does not fit beside
it, and the last bucket, is time that one GPU would not have needed.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

GPUS = 8  # a node
BUCKET = 25e6  # bytes; DDP's default
PARTS_BACKWARD = 2 / 4  # of a step's work: teacher 1, student forward 1, backward 2


@dataclass(frozen=True)
class Model:
    name: str
    width: int
    layers: int
    patches: int
    patch: int
    embed: int
    classes: int = 1000

    @property
    def parameters(self) -> int:
        """That are trained: blocks, embeddings, norms, projection, pixel decoder, classifier, mask token."""
        W, pixels = self.width, 3 * self.patch**2
        block = 12 * W * W + 13 * W
        embeddings = W * pixels + W + (self.patches + 1) * W
        return (
            self.layers * block
            + embeddings
            + 3 * 2 * W
            + W * self.embed
            + W * pixels
            + pixels
            + W
            + self.embed * self.classes
        )

    @property
    def step_flops(self) -> float:
        """An image: four dense forward passes' worth (benchmarks/train_step.py counts the same)."""
        W, tokens = self.width, self.patches + 1
        return 8 * (self.patches * W * 3 * self.patch**2 + self.layers * (12 * W * W * tokens + 2 * tokens**2 * W))


MODELS = [Model("ViT-B/16", 768, 12, 196, 16, 512), Model("ViT-L/14", 1024, 24, 256, 14, 768)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", type=float, default=989, help="TFLOP/s of a GPU in bf16 [%(default)s: H100 SXM]")
    parser.add_argument("--mfu", type=float, default=0.27, help="share of it that one GPU's step reaches [%(default)s]")
    parser.add_argument("--gpu-link", type=float, default=300, help="GB/s a GPU gets inside a node [%(default)s]")
    parser.add_argument("--node-link", type=float, default=40, help="GB/s a GPU gets between nodes [%(default)s]")
    parser.add_argument("--latency", type=float, default=20, help="microseconds a message takes [%(default)s]")
    parser.add_argument("--images-per-gpu", type=int, default=128, help="for the growing batch [%(default)s]")
    parser.add_argument("--batch-size", type=int, default=1024, help="for the fixed batch [%(default)s]")
    options = parser.parse_args()
    for model in MODELS:
        size = 4 * model.parameters
        print(f"\n{model.name}: {model.parameters / 1e6:.1f} M trained parameters, {size / 1e6:.0f} MB of gradients,")
        print(f"{model.step_flops / 1e9:.0f} GFLOP an image and step\n")
        print("| nodes | GPUs | sent by a GPU | fixed batch: images/s | efficiency | growing: images/s | efficiency |")
        print("|--:|--:|--:|--:|--:|--:|--:|")
        for nodes in (1, 2, 4, 8, 16):
            gpus = nodes * GPUS
            fixed = speed(model, nodes, options.batch_size / gpus, options)
            grown = speed(model, nodes, options.images_per_gpu, options)
            sent = 2 * (gpus - 1) / gpus * size / 1e9
            columns = [f"{value:,.0f} | {efficiency:.0%}" for value, efficiency in (fixed, grown)]
            print(f"| {nodes} | {gpus} | {sent:.2f} GB | {' | '.join(columns)} |")


def speed(model: Model, nodes: int, images: float, options: argparse.Namespace) -> tuple[float, float]:
    """(images/s of all GPUs, efficiency against one GPU) with `images` a GPU and step."""
    work = images * model.step_flops / (options.mfu * options.peak * 1e12)
    size = 4 * model.parameters
    communication = all_reduce(size, nodes, options)
    last = all_reduce(BUCKET, nodes, options)
    exposed = max(0.0, communication - last - PARTS_BACKWARD * work) + last
    seconds = work + exposed
    return nodes * GPUS * images / seconds, work / seconds


def all_reduce(size: float, nodes: int, options: argparse.Namespace) -> float:
    """Seconds: reduce-scatter in a node, all-reduce of a GPU's share between nodes, all-gather in a node."""
    inside = 2 * (GPUS - 1) / GPUS * size / (options.gpu_link * 1e9)
    between = 2 * (nodes - 1) / nodes * (size / GPUS) / (options.node_link * 1e9)
    messages = 2 * (GPUS - 1) + 2 * (nodes - 1)
    return inside + between + messages * options.latency * 1e-6


if __name__ == "__main__":
    main()
