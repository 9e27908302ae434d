"""Classifies with torch: with a bundle, or a zero-shot model."""

import json
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np
import torch

from must.base.errors import UserError
from must.base.parameters import require
from must.config import PredictConfig
from must.config.work import METRICS_FILE, PARTS, Workspace
from must.data.augment import normalize
from must.evaluation.result import read_metrics
from must.model.bundle import Bundle, load_bundle, make_named_bundle, make_zero_shot_bundle
from must.model.classifier import load_text_classifier
from must.model.description import get_preprocess
from must.model.distributed import pick_device
from must.prediction.onnx_model import ABSTENTION, Classified, find_measured_abstention


class BundleClassifier:
    """Pixels -> class probabilities, by a bundle on the device --device, in float32."""

    def __init__(self, bundle: Bundle, config: PredictConfig) -> None:
        self.device = pick_device(config.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.where, self.classes = config.model, bundle.description.classes
        self.preprocess = get_preprocess(bundle.description)
        self.embeddings, self.bundle = config.embeddings, bundle
        for network in filter(None, (bundle.model, bundle.memory)):
            network.to(self.device)
        told = bundle.description
        self.identity = json.dumps([told.weights_sha256, told.backbone, told.pretrained, told.classes, told.templates])

    def __call__(self, pixels: np.ndarray) -> Classified:
        with torch.inference_mode():
            images = normalize(torch.from_numpy(pixels).to(self.device), self.preprocess)
            probability, similarity, feature = (output.cpu().numpy() for output in self.bundle.classify(images))
        require(bool(np.isfinite(probability).all()), f"{self.where}: its probabilities are no finite numbers")
        return Classified(probability, similarity, feature if self.embeddings else None)

    @cached_property
    def metadata(self) -> dict[str, str]:
        """What `must export` writes to the ONNX file about abstaining: by the report in WORK, or else by the bundle."""
        work, _, name = self.where.rstrip("/").rpartition("/")
        metrics = None
        if name == PARTS["bundle"].path and Workspace(work).is_measured():
            with suppress(UserError):  # a damaged report
                metrics = read_metrics(Workspace(work).place("report", METRICS_FILE))
        abstention = find_measured_abstention(metrics, self.bundle.description.provenance.selection)
        return {ABSTENTION: json.dumps(abstention)} if abstention else {}


def open_bundle(config: PredictConfig, zero_shot: bool, classes: list[Any] | None) -> BundleClassifier:
    """As `open_with_torch`."""
    if config.classes:
        bundle = make_named_bundle(config.model, classes or config.classes, config.device)
    elif zero_shot:
        bundle = make_zero_shot_bundle(load_text_classifier(config.model, "--model"))
    else:
        bundle = load_bundle(config.model)
    return BundleClassifier(bundle, config)
