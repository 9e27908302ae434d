"""The adapted model on disk: ``model.safetensors`` and ``model.json``. Evaluating and exporting need nothing else."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from must import __version__
from must.base import storage
from must.base.errors import UserError
from must.base.files import DESCRIPTION_FILE, WEIGHTS_FILE
from must.base.parameters import require
from must.base.records import make_record
from must.base.text import brief
from must.data.image.preprocess import Preprocess
from must.method.model.classifier import LARGEST_HEADER, LARGEST_LOGIT_FACTOR
from must.method.model.provenance import MemoryFacts, Provenance, RunSummary

if TYPE_CHECKING:
    from torch import Tensor

    from must.method.memory.memory import Memory, MemoryClassifier
    from must.method.model.backbone import Backbone
    from must.method.model.classifier import TextClassifier
    from must.method.model.masked_vit import MaskedViT

MEMORY_PREFIX = "memory."  # of the memory's tensors in model.safetensors
LOG_FILE = "train_log.jsonl"  # the training log, beside them; not every bundle has one
BUNDLE_FORMAT = 1


@dataclass(frozen=True)
class Bundle:
    """`description`: all but the weights; `model`: the tower with its classifier, in eval mode; `memory`: what is known
    about the images that it was adapted to, its last layer, or None."""

    model: MaskedViT
    description: Description
    memory: Memory | None = None

    @property
    def classifier(self) -> MaskedViT | MemoryClassifier:
        """Images [B, 3, H, W], normalised -> logits [B, K]: the model, with its memory if it has one."""
        from must.method.memory.memory import MemoryClassifier

        return MemoryClassifier(self.model, self.memory).eval() if self.memory else self.model


@dataclass(frozen=True)
class Description:
    architecture: dict[str, Any]  # embed_dim, vision_cfg, quick_gelu: what open_clip needs to build the tower
    backbone: str
    pretrained: str
    classes: list[str]
    templates: list[str]
    preprocess: dict[str, Any]
    logit_factor: float
    provenance: Provenance = field(default_factory=Provenance)
    must_version: str = __version__
    format: int = BUNDLE_FORMAT
    weights_sha256: str = ""  # of model.safetensors; "" for a bundle that was not written

    def to_dict(self) -> dict[str, Any]:
        """The content of model.json."""
        return vars(self) | {"provenance": self.provenance.to_dict()}


def save_bundle(folder: str, model: MaskedViT, description: Description, memory: Memory | None = None) -> Description:
    """Deletes model.json first and writes it last, with the weights' sha256: a folder with it is a complete bundle. The
    memory is in the file of the weights, so that both are always of one model. Returns the description as written."""
    from safetensors.torch import save

    tensors = model.state_dict()
    if memory:
        tensors |= {MEMORY_PREFIX + name: value for name, value in memory.state_dict().items()}
    weights = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    facts = memory.facts if memory else None
    description = replace(
        description,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        provenance=replace(description.provenance, memory=facts),
    )
    storage.delete(file := storage.join(folder, DESCRIPTION_FILE))
    storage.write_bytes(storage.join(folder, WEIGHTS_FILE), weights)
    storage.write_bytes(file, json.dumps(description.to_dict(), indent=1).encode())
    return description


def load_description(folder: str) -> Description:
    """Raises ValueError: no bundle there, a damaged one, or one of another format."""
    uri = storage.join(folder, DESCRIPTION_FILE)
    require(storage.exists(uri), f"--model {folder}: no {DESCRIPTION_FILE} there; a bundle is what `must train` writes")
    parsed = storage.read_object(uri, checked, UserError(f"{uri}: is damaged"))
    if not isinstance(parsed, Description):
        raise UserError(
            f"--model {folder}: its format is {brief(parsed)}, and must {__version__} reads format {BUNDLE_FORMAT}; "
            "use the version of must that wrote it, or a newer one"
        )
    return parsed


def checked(values: dict[str, Any]) -> Description | int | float:
    """The description in a bundle's file, or the number of its format if that is another one."""
    if (number := values["format"]) != BUNDLE_FORMAT:
        require(isinstance(number, int | float), "a value of another kind")
        return number
    provenance = Provenance.of_dict(values.get("provenance", {}))
    description = replace(make_record(Description, values | {"provenance": {}}), provenance=provenance)
    require(0 < description.logit_factor <= LARGEST_LOGIT_FACTOR, "a factor out of range")
    require(re.fullmatch("[0-9a-f]{64}", description.weights_sha256) is not None, "no sha256 of the weights")
    return description


def summary_at(folder: str) -> RunSummary:
    """The summary of the training run of a bundle. Raises ValueError: no bundle, or one without a summary."""
    summary = load_description(folder).provenance.summary
    if summary is None:
        raise UserError(f"{storage.join(folder, DESCRIPTION_FILE)}: has no summary of a training")
    return summary


def check_weights(uri: str) -> None:
    """Checks without torch. Raises ValueError: not a safetensors file, or its size does not match its header."""
    require(storage.exists(uri), f"{uri}: is missing")
    size = min(int.from_bytes(storage.read_bytes(uri, 0, 8), "little"), LARGEST_HEADER)
    damaged = UserError(f"{uri}: is damaged or no weights of a model")

    def end(header: dict[str, Any]) -> int:
        return max(tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__")

    if storage.size(uri) != 8 + size + storage.parse_object(storage.read_bytes(uri, 8, size), end, damaged):
        raise damaged


def load_bundle(folder: str) -> Bundle:
    """Raises ValueError: no bundle there, or a damaged one."""
    from safetensors.torch import load

    from must.method.model.backbone import build_visual, check_fetches_nothing
    from must.method.model.masked_vit import MaskedViT

    description = load_description(folder)
    uri = storage.join(folder, WEIGHTS_FILE)
    require(storage.exists(uri), f"{uri}: is missing")
    file = storage.join(folder, DESCRIPTION_FILE)
    try:
        check_fetches_nothing(description.architecture)
        Preprocess.from_dict(description.preprocess)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{file}: is damaged") from None
    data = storage.read_bytes(uri)
    require_weights(uri, description, hashlib.sha256(data).hexdigest())
    try:
        weights = load(data)
        held = [name for name in weights if name.startswith(MEMORY_PREFIX)]
        remembered = {name.removeprefix(MEMORY_PREFIX): weights.pop(name) for name in held}
        model = MaskedViT(build_visual(description.architecture), weights["classifier"], description.logit_factor)
        model.load_state_dict(weights)
        memory = load_memory(remembered, description.provenance.memory, model)
    except Exception as error:
        raise UserError(f"{uri}: is damaged or of another model ({type(error).__name__})") from error
    names, columns = len(description.classes), model.classifier.shape[1]
    require(names == columns, f"{file}: names {names} classes, {WEIGHTS_FILE} has {columns}; copy both files again")
    return Bundle(model.eval(), description, memory)


def load_memory(tensors: dict[str, Tensor], facts: MemoryFacts | None, model: MaskedViT) -> Memory | None:
    """Raises ValueError or KeyError: the tensors are no memory of the model."""
    require(bool(tensors) == (facts is not None), "a memory without its description")
    if facts is None:
        return None
    from must.method.memory.memory import parse_memory

    return parse_memory(tensors, facts, model)


def require_weights(uri: str, description: Description, sha256: str) -> None:
    """Raises UserError: the weights with `sha256` at `uri` are not those that model.json describes."""
    require(
        sha256 == description.weights_sha256,
        f"{uri}: is damaged or of another model than the {DESCRIPTION_FILE} beside it; copy both files again",
    )


def require_same_model(label: str, weights_sha256: str, description: Description, remedy: str) -> None:
    """Raises UserError, which begins with `label`: what was made with the weights `weights_sha256` does not belong to
    the bundle of `description`. `remedy`: the command that makes it of this bundle."""
    require(
        weights_sha256 == description.weights_sha256,
        f"{label}: was made of another model (weights {brief(weights_sha256)[:14]}, of this bundle "
        f"{description.weights_sha256[:12]}); {remedy}",
    )


def zero_shot_bundle(
    classifier: TextClassifier, model: str = "", pretrained: str = "", logit_factor: str = "model"
) -> Bundle:
    """The untrained model of a classifier file: the baseline, and what training starts from.

    It is read from the classifier's model folder, without a hub, unless `model` or `pretrained` name another model.
    `logit_factor` is a number or 'model'.
    Raises ValueError: the model is missing, or it is not the model that the classifier was made with."""
    from must.method.model.backbone import load_backbone
    from must.method.model.folder import verified

    names = model or classifier.model, pretrained or ("" if model else classifier.pretrained)
    folder = classifier.model_folder if not (model or pretrained) else ""
    source = (verified(folder, classifier.model_sha256), "") if folder else names
    backbone = load_backbone(*source, with_tokenizer=False)
    factor = classifier.logit_scale if logit_factor == "model" else float(logit_factor)
    return untrained(backbone, classifier, *names, factor)


def untrained(backbone: Backbone, classifier: TextClassifier, model: str, pretrained: str, factor: float) -> Bundle:
    """The image tower of a loaded model with a classifier's weights; `model` and `pretrained` name it."""
    from must.method.model.masked_vit import MaskedViT

    network = MaskedViT(backbone.clip.visual, classifier.weights, factor)
    description = Description(
        architecture=backbone.architecture,
        backbone=model,
        pretrained=pretrained,
        classes=list(classifier.classes),
        templates=list(classifier.templates),
        preprocess=backbone.preprocess.to_dict(),
        logit_factor=factor,
    )
    return Bundle(network.eval(), description)


def named_bundle(model: str, classes: str | list[Any], device: str = "auto") -> Bundle:
    """The zero-shot bundle of a model's name and classes: `must classifier` in memory."""
    from must.method.distributed.process_group import pick_device
    from must.method.model.backbone import load_backbone
    from must.method.model.classifier import load_class_set, text_classifier

    class_set, backbone = load_class_set(classes), load_backbone(model)
    classifier = text_classifier(backbone, class_set, pick_device(device))
    backbone.clip.cpu()
    return untrained(backbone, classifier, backbone.model, backbone.pretrained, backbone.logit_scale)


def require_classes(label: str, classes: list[str], others: list[str]) -> None:
    """Raises UserError, which begins with `label`: the `others` there are not the `classes` of the model."""
    if classes != others:
        missing = [name for name in classes if name not in others] or [name for name in others if name not in classes]
        difference = f"e.g. '{missing[0]}' is in one only" if missing else "their order differs"
        raise UserError(
            f"{label}: has other classes ({len(others)}) than the model ({len(classes)}; {difference}); take the "
            "classifier file that the model was trained with"
        )


def have_same_shape(first: Bundle, second: Bundle) -> bool:
    """Whether two models can be interpolated: their weights have the same shapes, and their images the same pixels."""
    shapes = [{name: value.shape for name, value in b.model.state_dict().items()} for b in (first, second)]
    return shapes[0] == shapes[1] and get_preprocess(first.description) == get_preprocess(second.description)


def get_preprocess(description: Description) -> Preprocess:
    return Preprocess.from_dict(description.preprocess)
