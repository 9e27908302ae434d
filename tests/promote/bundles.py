"""Bundles without a trained model, with weights that nobody loads: what the registry copies, and promoting them."""

import json
from pathlib import Path

from must.api.cli import main
from must.deploy.promote.registry import Registry
from must.method.model.bundle import Description
from must.method.model.provenance import Provenance


def make_bundle(
    folder: Path, seed: int = 0, revision: int = 0, classes: tuple[str, ...] = ("cat", "dog"), pretrained: str = "",
    **origin: str,
) -> Path:  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes([seed]) * 1000)
    description = Description(
        architecture={}, backbone="tiny", pretrained=pretrained, classes=list(classes), templates=["a {}"],
        preprocess={}, logit_factor=100.0,
        provenance=Provenance(index_sha256=f"sha{revision}", index_revision=revision, git_revision="abc", **origin),
    )  # fmt: skip
    (folder / "model.json").write_text(json.dumps(description.to_dict()))
    (folder / "train.log").write_text("not part of the model")
    return folder


def promote(registry, *flags):
    main(["promote", "--registry", registry, "--name", "digits", *map(str, flags)])


def latest(registry):
    return Registry(registry, "digits").latest()
