"""The adapted model on disk: ``model.safetensors`` and ``model.json``. Evaluating and exporting need nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from must import __version__, storage
from must.image.preprocess import Preprocess
from must.parameters import require
from must.text import brief

if TYPE_CHECKING:
    from must.model.classifier import TextClassifier
    from must.model.masked_vit import MaskedViT

WEIGHTS_FILE, DESCRIPTION_FILE = "model.safetensors", "model.json"
LOG_FILE = "train_log.jsonl"  # of the training, beside them; a bundle may be without
FORMAT = 1


@dataclass(frozen=True)
class Bundle:
    """`description`: everything about the model but its weights; `model`: ready to classify, in eval mode."""

    model: MaskedViT
    description: Description


@dataclass(frozen=True)
class Description:
    architecture: dict[str, Any]  # embed_dim, vision_cfg, quick_gelu: what open_clip needs to build the tower
    backbone: str
    pretrained: str
    classes: list[str]
    templates: list[str]
    preprocess: dict[str, Any]
    logit_factor: float
    provenance: dict[str, Any] = field(default_factory=dict)  # data, parameters and versions it was trained with
    must_version: str = __version__
    format: int = FORMAT


def save_bundle(folder: str, model: MaskedViT, description: Description) -> None:
    """Writes both files; the description last, so that a folder with model.json is a whole bundle."""
    from safetensors.torch import save

    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    storage.write_bytes(storage.join(folder, WEIGHTS_FILE), save(weights))
    storage.write_bytes(storage.join(folder, DESCRIPTION_FILE), json.dumps(asdict(description), indent=1).encode())


def load_description(folder: str) -> Description:
    """Raises ValueError: no bundle there, a damaged one, or one of a newer version."""
    uri = storage.join(folder, DESCRIPTION_FILE)
    require(storage.exists(uri), f"--model {folder}: no {DESCRIPTION_FILE} there; a bundle is what `must train` writes")
    try:
        values = json.loads(storage.read_bytes(uri))
        newer, version = values["format"] > FORMAT, values["must_version"]
        description = None if newer else Description(**values)
        whole = newer or all(isinstance(name, str) for name in [*values["classes"], *values["templates"]])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError(f"{uri}: is damaged") from None
    require(whole, f"{uri}: is damaged")
    if description is None:
        raise ValueError(f"--model {folder}: written by a newer version ({brief(version)})")
    return description


def load_bundle(folder: str) -> Bundle:
    """Raises ValueError: no bundle there, or a damaged one."""
    from safetensors.torch import load

    from must.model.backbone import build_visual, check_fetches_nothing
    from must.model.masked_vit import MaskedViT

    description = load_description(folder)
    uri = storage.join(folder, WEIGHTS_FILE)
    require(storage.exists(uri), f"{uri}: is missing")
    try:
        check_fetches_nothing(description.architecture)
    except ValueError as error:
        raise ValueError(f"{storage.join(folder, DESCRIPTION_FILE)}: {error}") from None
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{storage.join(folder, DESCRIPTION_FILE)}: is damaged") from None
    try:
        weights = load(storage.read_bytes(uri))
        model = MaskedViT(build_visual(description.architecture), weights["classifier"], description.logit_factor)
        model.load_state_dict(weights)
    except Exception as error:
        raise ValueError(f"{uri}: is damaged or of another model ({type(error).__name__})") from error
    return Bundle(model.eval(), description)


def zero_shot_bundle(
    classifier: TextClassifier, model: str = "", pretrained: str = "", logit_factor: str = "model"
) -> Bundle:
    """The untrained model of a classifier file: the baseline, and what training starts from.

    `model` and `pretrained` override where the classifier says its model is; `logit_factor` is a number or 'model'.
    """
    from must.model.backbone import load_backbone
    from must.model.masked_vit import MaskedViT

    backbone = load_backbone(
        model or classifier.model, pretrained or ("" if model else classifier.pretrained), with_tokenizer=False
    )
    factor = classifier.logit_scale if logit_factor == "model" else float(logit_factor)
    network = MaskedViT(backbone.clip.visual, classifier.weights, factor)
    description = Description(
        architecture=backbone.architecture,
        backbone=backbone.model,
        pretrained=backbone.pretrained,
        classes=list(classifier.classes),
        templates=list(classifier.templates),
        preprocess=backbone.preprocess.to_dict(),
        logit_factor=factor,
    )
    return Bundle(network.eval(), description)


def preprocess_of(description: Description) -> Preprocess:
    return Preprocess.from_dict(description.preprocess)
