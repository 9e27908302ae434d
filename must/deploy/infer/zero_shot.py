"""A CLIP model that nobody has adapted, as a classifier: from a classifier file, or from its name and class names."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from must.config import PredictConfig
from must.deploy.infer.bundle import BundleClassifier
from must.deploy.predict.engine import Model
from must.method.distributed.process_group import pick_device
from must.method.model.backbone import load_backbone
from must.method.model.bundle import Bundle, untrained, zero_shot_bundle
from must.method.model.classifier import load_class_set, load_text_classifier, text_classifier


@contextmanager
def zero_shot_model(config: PredictConfig, classes: list[Any] | None = None) -> Iterator[Model]:
    """The model of a classifier file; or, with --classes, the one that --model names. `classes` are those in place of
    the parameter: entries of a class file.

    Raises:
        ValueError: neither a classifier file nor a model that is known, or classes that are none.
    """
    if config.classes:
        bundle = named_bundle(config.model, classes or config.classes, config.device)
    else:
        bundle = zero_shot_bundle(load_text_classifier(config.model, "--model"))
    yield Model(
        sha256_of(bundle), lambda patient: BundleClassifier(bundle, config.model, config.device, config.threads)
    )


def named_bundle(model: str, classes: str | list[Any], device: str = "auto") -> Bundle:
    """What `must classifier` makes of a model's name and classes, in memory."""
    class_set, backbone = load_class_set(classes), load_backbone(model)
    made = text_classifier(backbone, class_set, pick_device(device))
    backbone.clip.cpu()
    return untrained(backbone, made, backbone.model, backbone.pretrained, backbone.logit_scale)


def sha256_of(bundle: Bundle) -> str:
    """What predictions are known by: the weights, and the names of their columns."""
    digest = hashlib.sha256(repr(bundle.description.classes).encode())
    for name, value in sorted(bundle.model.state_dict().items()):
        if name.startswith(("visual.", "classifier")):  # the rest is training's, drawn anew each time
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
