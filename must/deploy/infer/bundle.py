"""Predicts in torch with the same network that `must export` writes to ONNX: of a bundle, or a zero-shot model."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from must.base import storage
from must.base.errors import UserError
from must.base.files import DESCRIPTION_FILE, WEIGHTS_FILE
from must.base.parameters import require
from must.config import PredictConfig
from must.data.augment.normalize import normalize
from must.deploy.export.inference import InferenceModel
from must.deploy.predict.session import Classified, Model
from must.method.distributed.process_group import pick_device
from must.method.model.bundle import Bundle, load_bundle, named_bundle, zero_shot_bundle
from must.method.model.classifier import load_text_classifier
from must.method.model.description import get_preprocess


class BundleClassifier:
    """Pixels -> class probabilities, by a bundle on one device, in float32.
    Raises ValueError: the device does not exist."""

    def __init__(self, bundle: Bundle, where: str, device: str = "auto", threads: int = 0) -> None:
        self.device = pick_device(device)
        if threads:
            torch.set_num_threads(threads)
        self.where, self.classes = where, bundle.description.classes
        self.preprocess = get_preprocess(bundle.description)
        self.metadata: dict[str, str] = {}  # `must export --metrics` puts a threshold into an ONNX file only
        self.network = InferenceModel(bundle, uint8=False).eval().to(self.device)

    def __call__(self, pixels: np.ndarray) -> Classified:
        """Classifies uint8 [B, S, S, 3]."""
        with torch.inference_mode():
            images = normalize(torch.from_numpy(pixels).to(self.device), self.preprocess)
            probability, *similarity = (output.cpu().numpy() for output in self.network(images))
        require(bool(np.isfinite(probability).all()), f"{self.where}: its probabilities are no finite numbers")
        return Classified(probability, similarity[0] if similarity else np.full(len(pixels), np.nan, np.float32))


@contextmanager
def bundle_model(config: PredictConfig) -> Iterator[Model]:
    """The bundle at --model, copied from its bucket. Raises ValueError: one of its files is missing or damaged."""
    with tempfile.TemporaryDirectory(prefix="must-predict-") as copy:
        remote, digest = storage.is_remote(config.model), hashlib.sha256()
        folder = copy if remote else config.model
        for name in (DESCRIPTION_FILE, WEIGHTS_FILE):
            uri = storage.join(config.model, name)
            require(storage.exists(uri), f"{uri}: is missing")
            if remote:
                storage.download(uri, Path(copy) / name)
            digest.update(storage.compute_sha256(storage.local(storage.join(folder, name))).encode())

        def open_bundle(_: bool) -> BundleClassifier:
            try:
                return BundleClassifier(load_bundle(folder), config.model, config.device, config.threads)
            except ValueError as error:  # the message names the user's --model, not the copy
                raise UserError(str(error).replace(folder, config.model)) from error

        yield Model(digest.hexdigest(), open_bundle)


@contextmanager
def zero_shot_model(config: PredictConfig, classes: list[Any] | None = None) -> Iterator[Model]:
    """The model of a classifier file; with --classes, the CLIP model of the name --model. `classes`: entries of a class
    file, used in place of --classes.
    Raises ValueError: neither a classifier file nor a known model, or classes that are not valid."""
    if config.classes:
        bundle = named_bundle(config.model, classes or config.classes, config.device)
    else:
        bundle = zero_shot_bundle(load_text_classifier(config.model, "--model"))
    yield Model(weights_sha256(bundle), lambda _: BundleClassifier(bundle, config.model, config.device, config.threads))


def weights_sha256(bundle: Bundle) -> str:
    """Identifies predictions: a checksum of the weights and of the class names."""
    digest = hashlib.sha256(repr(bundle.description.classes).encode())
    for name, value in sorted(bundle.model.state_dict().items()):
        if name.startswith(("visual.", "classifier")):  # others are used in training only, with random values
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
