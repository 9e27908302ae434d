"""AdamW with layer-wise learning rates, and their schedule (arXiv 2206.02967, appendix; numbers as published)."""

import math
from typing import Any

import torch

from must.method.distributed.parallel import all_ranks, to_local
from must.method.model.masked_vit import MaskedViT

BETAS, EPS = (0.9, 0.999), 1e-8


def parameter_groups(model: MaskedViT, layer_decay: float, weight_decay: float) -> list[dict[str, Any]]:
    """One group for each (layer, decayed or not): ``lr_scale`` = layer_decay ^ (layers + 1 - layer).

    Only one-dimensional tensors have no weight decay: embeddings, projection and classifier are decayed.
    """
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        number, decayed = model.layer_of(name), parameter.ndim > 1
        group = groups.setdefault(
            (number, decayed),
            {
                "name": f"layer_{number}_{'decay' if decayed else 'no_decay'}",
                "params": [],
                "lr_scale": layer_decay ** (model.layers + 1 - number),
                "weight_decay": weight_decay if decayed else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def build_optimizer(model: MaskedViT, layer_decay: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; the learning rate is set by `set_learning_rate` before every step."""
    groups = parameter_groups(model, layer_decay, weight_decay)
    return torch.optim.AdamW(groups, lr=0.0, betas=BETAS, eps=EPS, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def learning_rate(step: int, steps: int, lr: float, min_lr: float, batch_size: int) -> float:
    """Cosine from lr to min_lr, both x batch_size / 256, over all steps; without warm-up, and min_lr is not reached."""
    scale = batch_size / 256
    return scale * (min_lr + (lr - min_lr) / 2 * (1 + math.cos(math.pi * step / steps)))


def step_if_finite(optimizer: torch.optim.AdamW) -> torch.Tensor:
    """Steps unless a gradient is not finite; returns whether it did, as a bool tensor on the device.

    The fused kernel skips the update when ``found_inf`` is set (as GradScaler sets it), so the host need not wait.
    After averaging, all processes have the same gradients, or their shards of the same.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    finite = torch.isfinite(torch.stack(torch._foreach_norm([to_local(gradient) for gradient in gradients]))).all()
    finite = all_ranks(finite, like=gradients[0])
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.step()
    return finite
