"""The origin of a model: the identity of a run, and the provenance of its training in a bundle."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import must
from must.base import storage
from must.config import TrainConfig
from must.data.format.index import Index
from must.method.model.provenance import Provenance, RunSummary

# Parameters of how and where a run is executed; the result does not depend on them.
RESUME_SAFE_FIELDS = frozenset(
    {"shards", "classifier", "output", "preset", "model", "pretrained", "device", "workers", "checkpoints"}
    | {"checkpoint_every", "checkpoint_seconds", "keep_checkpoints", "keep_every", "resume", "save", "alpha"}
    | {"log_every", "tensorboard", "timeout", "accumulate", "parallel", "activation_checkpointing", "compile"}
    | {"cache", "cache_gb", "max_replaced", "index_sha256"}
)


def run_identity(
    config: TrainConfig, index_sha256: str, weights_sha256: dict[str, str], shares: Sequence[float] = ()
) -> dict[str, Any]:
    """All that determines a run's weights: a run may resume from the checkpoint of one with the same identity.

    `weights_sha256`: of the classifier and of the zero-shot model's image tower, by these names."""
    settings = {name: value for name, value in config.to_dict().items() if name not in RESUME_SAFE_FIELDS}
    inputs: dict[str, Any] = {"index_sha256": index_sha256}
    inputs |= {f"sha256 of the {name}": sha256 for name, sha256 in weights_sha256.items()}
    return {**inputs, "class_shares": list(shares) if config.class_prior == "given" else None, **settings}


def run_key(index_sha256: str, classifier: str, settings: dict[str, Any]) -> str:
    """A hash of a run's inputs: a retry finds its checkpoints by it, another run does not."""
    parts = [index_sha256, hashlib.sha256(storage.read_bytes(classifier)).hexdigest(), settings]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def provenance(
    config: TrainConfig,
    index: Index,
    processes: int,
    summary: RunSummary,
    prior: Sequence[float],
    origin: dict[str, str],
) -> Provenance:
    """`prior`: [K], the class balance's target; empty for uniform. `origin`: `model_folder` and `model_sha256` of the
    pretrained model, if known."""
    packages = ("torch", "open_clip_torch", "timm", "pillow", "numpy")
    return Provenance(
        index_sha256=index.sha256,
        index_revision=index.revision,
        config=config.to_dict(),
        processes=processes,
        summary=summary,
        git_revision=git_revision(),
        versions={"must": must.__version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in packages},
        class_shares=list(prior),
        model_folder=origin.get("model_folder", ""),
        model_sha256=origin.get("model_sha256", ""),
    )


def git_revision() -> str | None:
    """The commit of the container image (MUST_GIT_REVISION), else of the checkout with this package, if any."""
    if revision := os.environ.get("MUST_GIT_REVISION"):
        return revision
    root = Path(must.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None
