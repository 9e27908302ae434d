"""Derives the stages' parameters from a run's."""

from __future__ import annotations

from typing import Any

from must.base.parameters import require


def training_settings(settings: dict[str, Any], preset: str, epochs: int) -> dict[str, Any]:
    """The parameters of `must train` that a run of the pipeline gives: `epochs` wins unless it is 0."""
    return {**settings, "preset": preset, **({"epochs": epochs} if epochs else {})}


def sharding_settings(settings: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The parameters of `must shard`: the pipeline's `own`, and others that a run gives.

    Raises:
        ValueError: `settings` has one that the pipeline itself gives.
    """
    own_names = {*own, "part", "run_id"}
    twice = ", ".join(name for name in settings if name.replace("-", "_") in own_names)
    require(not twice, f"shard_settings: {twice}: a parameter of the pipeline or set by it; take it out")
    return own | {name.replace("-", "_"): value for name, value in settings.items()}
