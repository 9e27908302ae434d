"""The stage `must predict`: with an ONNX file, or with a bundle."""

from __future__ import annotations

from collections.abc import Callable

from must.base import storage
from must.config import PredictConfig
from must.deploy.predict import predict as onnx
from must.deploy.predict.writer import Prediction
from must.method.model.bundle import DESCRIPTION_FILE


def predict(config: PredictConfig, take: Callable[[Prediction], None] | None = None) -> dict[str, int]:
    """`must.deploy.predict.predict.predict`, by torch where --model is a bundle's folder.

    Raises:
        ValueError: no model, or none of the images could be read.
    """
    if not storage.exists(storage.join(config.model, DESCRIPTION_FILE)):
        return onnx.predict(config, take)
    from must.deploy.infer.bundle import bundle_model  # needs torch

    return onnx.predict(config, take, bundle_model)
