"""Is there something to gain? What a tower's features could tell, beside what its names do; nothing is adapted.

    python -m benchmarks.shifts.gap ideo brush          (a minute a task)

Percent of the test images: zero-shot; the 10 nearest of the unlabeled images, by their true labels; a linear probe
fitted to those, from zero-shot's own weights.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.shifts.packages import ROOT
from benchmarks.shifts.pretrain import normalized
from benchmarks.shifts.run import prepared
from benchmarks.shifts.tasks import TASKS, task
from must.method.model.bundle import zero_shot_bundle
from must.method.model.classifier import load_text_classifier
from must.method.model.masked_vit import MaskedViT

NEAREST, STEPS = 10, 300


def gap(name: str) -> tuple[float, ...]:
    made = task(name)
    _, file = prepared(ROOT / "work" / f"{name}.as-is.0", made)
    model = zero_shot_bundle(load_text_classifier(file)).model.eval()
    seen, tested = (features(model, pictures) for pictures in (made.unlabeled, made.test))
    weight = model.classifier.detach().T
    hidden, truth = torch.from_numpy(made.hidden), torch.from_numpy(made.labels)
    scale = 50.0
    found = [right(tested @ weight.T, truth)]
    near = (tested @ seen.T).topk(NEAREST, dim=1)
    votes = torch.zeros(len(tested), len(made.classes)).scatter_add_(1, hidden[near.indices], near.values)
    found.append(right(votes, truth))
    probe = weight.clone().requires_grad_()
    optimizer = torch.optim.AdamW([probe], lr=0.01, weight_decay=0.01)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(scale * seen @ F.normalize(probe, dim=1).T, hidden, label_smoothing=0.1).backward()
        optimizer.step()
    found.append(right(tested @ F.normalize(probe.detach(), dim=1).T, truth))
    return tuple(found)


@torch.no_grad()
def features(model: MaskedViT, pictures: np.ndarray) -> Tensor:
    parts = torch.from_numpy(pictures).float().div(255).split(500)
    tokens = [model.tower.forward_features(normalized(part), lambda patches: patches, None)[0] for part in parts]
    return torch.cat([F.normalize(model.tower.feature(part), dim=1) for part in tokens])


def right(scores: Tensor, truth: Tensor) -> float:
    return 100 * float((scores.argmax(1) == truth).float().mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    torch.set_num_threads(1)
    for one in parser.parse_args().tasks:
        print(f"{one}: zero-shot {{:.1f}}, nearest {{:.1f}}, probe {{:.1f}}".format(*gap(one)), flush=True)
