"""The stage `must predict`: with an ONNX file, or with a bundle."""

from __future__ import annotations

from collections.abc import Callable

from must import storage
from must.config import PredictConfig
from must.model.bundle import DESCRIPTION_FILE
from must.predict import predict as onnx
from must.predict.writer import Prediction


def predict(config: PredictConfig, take: Callable[[Prediction], None] | None = None) -> dict[str, int]:
    """`must.predict.predict.predict`, by torch where --model is a bundle's folder.

    Raises:
        ValueError: no model, or none of the images could be read.
    """
    if not storage.exists(storage.join(config.model, DESCRIPTION_FILE)):
        return onnx.predict(config, take)
    from must.infer.bundle import bundle_model  # needs torch

    return onnx.predict(config, take, bundle_model)
