"""A zero-shot classifier's weights, fitted again to refined labels on frozen features."""

import numpy as np
import torch
import torch.nn.functional as F

PULL = 3e-4  # towards the text's own weights, times the logit factor
STEPS = 50


def refit(
    features: np.ndarray, targets: np.ndarray, weights: np.ndarray, factor: float, device: torch.device | None = None
) -> np.ndarray:
    """Float32 [D, K], unit columns, near `weights`.

    Minimises the mean cross entropy of `targets` [N, K] with softmax(factor f W), plus factor PULL / 2 |W - weights|^2,
    by L-BFGS from `weights`: a strictly deterministic function of its arguments on a CPU.

    Args:
        features: float32 [N, D], unit vectors.
        weights: float32 [D, K], unit columns.
    """
    f, z, text = (
        torch.from_numpy(np.ascontiguousarray(x, np.float32)).to(device) for x in (features, targets, weights)
    )
    free = text.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([free], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        unit = F.normalize(free, dim=0)
        value = -(z * (factor * f @ unit).log_softmax(-1)).sum(-1).mean()
        value = value + 0.5 * factor * PULL * (unit - text).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return F.normalize(free, dim=0).detach().cpu().numpy()


def between(start: np.ndarray, end: np.ndarray, alpha: float) -> np.ndarray:
    """start + alpha (end - start) with unit columns; at 0 the very bits of `start`."""
    if alpha == 0:
        return start
    mixed = start + np.float32(alpha) * (end - start)
    return np.asarray(mixed / np.linalg.norm(mixed, axis=0, keepdims=True), np.float32)
