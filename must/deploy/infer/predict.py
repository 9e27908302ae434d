"""The stage `must predict`: with an ONNX file, a bundle, a classifier file, or a model's name and class names."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from must.base import storage
from must.base.errors import UserError
from must.base.files import DESCRIPTION_FILE, MODEL_FOLDER_FILE, ONNX_FILE, RECORD_FILE
from must.base.parameters import require
from must.base.progress import load_torch
from must.config import PredictConfig
from must.config.work import find_part, is_work
from must.deploy.predict.images import predict_images, require_images
from must.deploy.predict.session import Opener, open_onnx
from must.deploy.predict.writer import Prediction


def predict(config: PredictConfig, take: Callable[[Prediction], None] | None = None) -> dict[str, int]:
    """`must.deploy.predict.images.predict_images`, with torch where --model is not an ONNX file."""
    if not config.shards:
        require_images(config.images)
    config, opener = find_model(config)
    return predict_images(config, take, opener)


def find_model(config: PredictConfig) -> tuple[PredictConfig, Opener]:
    """The parameters, with --model replaced by the model's own URI, and its opener. Imports torch only if needed."""
    model = config.model
    files = [name for name in (DESCRIPTION_FILE, ONNX_FILE) if storage.exists(storage.join(model, name))]
    if config.classes:
        require(
            not files and not is_work(model),
            f"--classes: the model in {model} has classes of its own; leave --classes out",
        )
        return config, torch_opener(zero_shot=True)
    if DESCRIPTION_FILE in files:
        return config, torch_opener()
    if ONNX_FILE in files or model.lower().endswith(".onnx"):
        return config, open_onnx
    if model.lower().endswith(".safetensors"):
        return config, torch_opener(zero_shot=True)
    for kind in ("bundle", "onnx", "classifier"):
        if uri := find_part(model, kind):
            require(
                kind != "classifier" or not storage.exists(storage.join(model, RECORD_FILE)),
                f"--model {model}: its model is not there; the same `must adapt` again makes it",
            )
            return replace(config, model=uri), open_onnx if kind == "onnx" else torch_opener(kind == "classifier")
    require(
        not any(storage.exists(storage.join(model, name)) for name in (MODEL_FOLDER_FILE, "config.json")),
        f"--model {model}: is a CLIP model that was not adapted; say which classes there are: --classes cat,dog,horse",
    )
    require(
        not (storage.is_remote(model) or storage.local(model).is_dir()),
        f"--model {model}: holds no model: neither model.onnx of `must export` nor model.json of `must train`",
    )
    require(
        not storage.exists(model),
        f"--model {model}: is neither model.onnx of `must export` nor a classifier file; nor is it a folder of a model",
    )
    raise UserError(
        f"--model {model}: no such file or folder; for the zero-shot answers of a CLIP model of that name say which "
        "classes there are: --classes cat,dog,horse"
    )


def torch_opener(zero_shot: bool = False) -> Any:
    """The opener of a bundle, or of a zero-shot model."""
    load_torch("predict")
    from must.deploy.infer.bundle import open_bundle, open_zero_shot

    return open_zero_shot if zero_shot else open_bundle
