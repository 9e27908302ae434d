"""Time that checkpoints take in a training loop: none, MUST's (copied, then written in the background), torch.save.

    python benchmarks/checkpoint.py --model ViT-B-16 --batch 8 --steps 6 --every 3

The same steps run three times in turn, on random images: a student with AdamW and an EMA teacher, so that the state is
that of a real run (four times the weights). Prints images/s, and how long the loop waited for a checkpoint.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from must.model.backbone import build_visual, read_config, select_architecture
from must.model.masked_vit import MaskedViT
from must.training.checkpoint import Checkpoints
from must.training.step import build_optimizer, make_teacher, set_learning_rate, update_teacher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--every", type=int, default=3, help="steps between checkpoints")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default=None, help="where checkpoints go, if not to the temporary folder")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = Training(args.model, args.batch, device)
    training.step()  # creates the optimizer's moments
    print(f"{args.model} on {device}, {torch.get_num_threads()} threads, batch {args.batch}")
    kinds = {"none": Nothing, "background": Background, "torch.save": Plain}
    speeds: dict[str, list[float]] = {name: [] for name in kinds}
    stalls: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(args.rounds):
        for name, kind in kinds.items():
            folder = tempfile.mkdtemp(prefix="must-benchmark-", dir=args.folder)
            seconds, stalled = measure(training, kind(folder), args.steps, args.every)
            speeds[name].append(args.steps * args.batch / seconds)
            stalls[name] += stalled
            shutil.rmtree(folder)
    base = statistics.median(speeds["none"])
    print(f"{'checkpoints':<12} {'images/s':>9} {'of none':>8} {'loop stands still, s a checkpoint':>36}")
    for name in kinds:
        speed = statistics.median(speeds[name])
        still = f"first {stalls[name][0]:.3f}, then {statistics.median(stalls[name][1:]):.3f}" if stalls[name] else ""
        print(f"{name:<12} {speed:>9.2f} {speed / base:>8.1%} {still:>36}")


def measure(training: Training, checkpoints: Nothing, steps: int, every: int) -> tuple[float, list[float]]:
    """(seconds of all steps with their waits, seconds of each checkpoint), without the end of the last write: in a run,
    training continues during it."""
    stalled = []
    started = time.perf_counter()
    for step in range(1, steps + 1):
        training.step()
        if step % every == 0:
            before = time.perf_counter()
            if checkpoints.save(step, training.state()):
                stalled.append(time.perf_counter() - before)
    seconds = time.perf_counter() - started
    checkpoints.close()
    return seconds, stalled


class Training:
    def __init__(self, model: str, batch: int, device: torch.device) -> None:
        torch.manual_seed(0)
        architecture = select_architecture(read_config(model, model, {}))
        classifier = torch.nn.functional.normalize(torch.randn(architecture["embed_dim"], 100), dim=0)
        self.student = MaskedViT(build_visual(architecture), classifier).to(device)
        self.teacher = make_teacher(self.student)
        self.optimizer = build_optimizer(self.student, 0.65, 0.05)
        set_learning_rate(self.optimizer, 1e-5)
        size = self.student.visual.image_size[0]
        self.images = torch.randn(batch, 3, size, size, device=device)
        self.masked = torch.arange(20, device=device).expand(batch, -1)

    def step(self) -> None:
        with torch.no_grad():
            labels = self.teacher(self.images).argmax(-1)
        output = self.student(self.images, self.masked)
        loss = torch.nn.functional.cross_entropy(output.logits, labels) + output.reconstruction.abs().mean()
        self.optimizer.zero_grad()
        (loss + output.alignment.mean()).backward()
        self.optimizer.step()
        update_teacher(self.teacher, self.student, 0.999)
        if self.images.is_cuda:
            torch.cuda.synchronize()

    def state(self) -> dict:
        return {
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }


class Nothing:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def save(self, step: int, state: dict) -> bool:
        return False

    def close(self) -> None:
        pass


class Background(Nothing):
    def __init__(self, folder: str) -> None:
        self.checkpoints = Checkpoints(folder, keep=1)

    def save(self, step: int, state: dict) -> bool:
        self.checkpoints.save(step, state)
        return True

    def close(self) -> None:
        self.checkpoints.close()


class Plain(Nothing):
    """In the loop, with a flush to disk that makes it survive a power failure, as in must."""

    def save(self, step: int, state: dict) -> bool:
        with (Path(self.folder) / "state.pt").open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        return True


if __name__ == "__main__":
    main()
