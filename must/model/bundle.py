"""The adapted model on disk, ``model.safetensors`` and ``model.json``: evaluating and exporting need nothing else; the
zero-shot model that it comes from; and the weights between the two (WiSE-FT, arXiv 2109.01903).

Training writes the model at `--alpha` between the zero-shot weights (0) and the trained ones (1), and the fully trained
one beside it, in OUTPUT/adapted, from which `must refine --alpha` makes another."""

import copy
import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.config.work import ADAPTED, DESCRIPTION_FILE, NEXT_DESCRIPTION_FILE, WEIGHTS_FILE
from must.data.image.preprocess import Preprocess
from must.model.backbone import Backbone, build_visual, check_fetches_nothing, load_backbone
from must.model.classifier import TextClassifier, load_class_set, make_text_classifier
from must.model.description import Description, Selection, load_description, require_weights
from must.model.distributed import pick_device
from must.model.masked_vit import MaskedViT
from must.model.memory import Memory, flatten_tokens, parse_memory

MEMORY_PREFIX = "memory."  # of the memory's tensors in model.safetensors
LOG_FILE = "train_log.jsonl"  # the training log, beside them; not every bundle has one
CLASSIFIER_PREFIXES = ("visual.", "classifier")  # the other weights are for training only

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Bundle:
    """`description`: all but the weights; `model`: the tower with its classifier, in eval mode; `memory`: what is known
    about the images that it was adapted to, its last layer, or None."""

    model: MaskedViT
    description: Description
    memory: Memory | None = None

    def classify(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images [B, 3, H, W], normalised -> (probabilities float32 [B, K], with the memory's votes if there is one;
        similarity to its images float32 [B], NaN without a memory; features [B, D] of length 1)."""
        logits, feature, tokens = self.model.classify(images)
        probability, similarity = logits.float().softmax(-1), torch.full_like(logits[:, 0], torch.nan)
        if self.memory:
            vectors = self.memory.join(flatten_tokens(self.model.tower, tokens), feature.float())
            probability, similarity = self.memory(probability, vectors)
        return probability, similarity, feature


def save_bundle(folder: str, model: MaskedViT, description: Description, memory: Memory | None = None) -> Description:
    """Writes model.json last, with the weights' sha256: a folder with it is a complete bundle. Before the weights it is
    written as model.next.json, so that a save that is killed between the two can be completed (`complete_save`): the
    bundle before is not lost. The memory is in the file of the weights, so that both are always of one model. Returns
    the description as written."""
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
    text = json.dumps(description.to_dict(), indent=1).encode()
    storage.write_bytes(following := storage.join(folder, NEXT_DESCRIPTION_FILE), text)
    try:
        storage.write_bytes(storage.join(folder, WEIGHTS_FILE), weights)
    except Exception:
        storage.delete(following)
        raise
    storage.write_bytes(storage.join(folder, DESCRIPTION_FILE), text)
    storage.delete(following)
    return description


def load_bundle(folder: str) -> Bundle:
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
        facts = description.provenance.memory
        require(bool(remembered) == (facts is not None), "a memory without its description")
        memory = parse_memory(remembered, facts, model) if facts else None
    except Exception as error:
        raise UserError(f"{uri}: is damaged or of another model ({type(error).__name__})") from error
    names, columns = len(description.classes), model.classifier.shape[1]
    require(names == columns, f"{file}: names {names} classes, {WEIGHTS_FILE} has {columns}; copy both files again")
    return Bundle(model.eval(), description, memory)


def make_zero_shot_bundle(classifier: TextClassifier, logit_factor: str = "model") -> Bundle:
    """The untrained model of a classifier file: the baseline, and what training starts from.

    It is read from the classifier's model folder, without a hub. `logit_factor` is a number or 'model'."""
    backbone = load_backbone(*classifier.find_model(), with_tokenizer=False)
    factor = classifier.logit_scale if logit_factor == "model" else float(logit_factor)
    return make_untrained(backbone, classifier, factor)


def make_untrained(backbone: Backbone, classifier: TextClassifier, factor: float) -> Bundle:
    """The image tower of a loaded model with a classifier's weights."""
    network = MaskedViT(backbone.clip.visual, classifier.weights, factor)
    description = Description(
        architecture=backbone.architecture,
        backbone=classifier.model,
        pretrained=classifier.pretrained,
        classes=list(classifier.classes),
        templates=list(classifier.templates),
        preprocess=backbone.preprocess.to_dict(),
        logit_factor=factor,
    )
    return Bundle(network.eval(), description)


def make_named_bundle(model: str, classes: str | list[Any], device: str = "auto") -> Bundle:
    """The zero-shot bundle of a model's name and classes: `must classifier` in memory."""
    class_set, backbone = load_class_set(classes), load_backbone(model)
    classifier = make_text_classifier(backbone, class_set, pick_device(device))
    backbone.clip.cpu()
    return make_untrained(backbone, classifier, backbone.logit_scale)


def load_trained(model: str) -> Bundle:
    """The fully trained bundle of a bundle: the one in its folder adapted/, or itself where its alpha is 1."""
    folder = storage.join(model, ADAPTED)
    if storage.exists(storage.join(folder, DESCRIPTION_FILE)):
        return load_bundle(folder)
    bundle = load_bundle(model)
    selection = bundle.description.provenance.selection
    if not bundle.description.provenance.config or (selection and selection.alpha != 1):
        raise UserError(f"--model {model}: has no trained weights in {ADAPTED}/, so that alpha cannot change")
    return bundle


def change_alpha(model: str, alpha: float, bundle: Bundle, zero_shot: Bundle) -> Bundle:
    """The bundle of `model` with another alpha, made of the zero-shot model and the fully trained one, which is saved
    beside it first. Raises UserError: it is not trained, or by another zero-shot model."""
    description = bundle.description
    now = description.provenance.selection or Selection()
    require(bool(description.provenance.config) or not alpha, f"--alpha: {model} is not trained")
    if not description.provenance.config or alpha == now.alpha:
        return bundle
    require(
        description.architecture == zero_shot.description.architecture,
        f"--classifier: is of {zero_shot.description.backbone}, --model {model} is a {description.backbone} of another "
        "shape; take the classifier file that the model was trained with",
    )
    trained = load_trained(model)
    if now.alpha == 1 and not storage.exists(storage.join(model, ADAPTED, DESCRIPTION_FILE)):
        save_bundle(storage.join(model, ADAPTED), trained.model, trained.description)
    provenance = replace(description.provenance, selection=Selection(alpha=alpha))
    return Bundle(interpolate(zero_shot.model, trained.model, alpha), replace(description, provenance=provenance))


def interpolate(zero_shot: MaskedViT, trained: MaskedViT, alpha: float) -> MaskedViT:
    """A network with the weights zero-shot + alpha (trained - zero-shot), at 0 and 1 exactly those of the ends, and the
    trained one's logit factor and training-only weights (decoder, mask token, patch norm)."""
    network = copy.deepcopy(zero_shot)
    network.logit_factor = trained.logit_factor
    start, end = zero_shot.state_dict(), trained.state_dict()
    start |= {name: value for name, value in end.items() if not name.startswith(CLASSIFIER_PREFIXES)}
    weights = end if alpha else start
    if alpha not in (0, 1):
        weights = {
            name: torch.lerp(value, end[name].to(value), alpha) if value.is_floating_point() else value
            for name, value in start.items()
        }
    network.load_state_dict(weights)
    return network.eval()
