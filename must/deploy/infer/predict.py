"""The stage `must predict`: with an ONNX file, a bundle, a classifier file, or a model's name and class names."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.program import load_torch
from must.config import PredictConfig
from must.config.work import DESCRIPTION_FILE, MODEL_FOLDER_FILE, ONNX_FILE, RECORD_FILE, find_part, is_work
from must.deploy.predict.found import require_images
from must.deploy.predict.images import predict_images, require_own_place
from must.deploy.predict.parts import join_parts
from must.deploy.predict.session import ImageClassifier, open_onnx
from must.deploy.predict.writer import Prediction


def predict(config: PredictConfig, take: Callable[[Prediction], None] | None = None) -> dict[str, int]:
    """`predict_images` with the model at --model; or joins the parts of --output, if there are some."""
    require_images(config.images)
    require_own_place(config.output)
    if config.output and not (config.part or config.known) and (rows := join_parts(config.output)) >= 0:
        return {"images": rows, "unreadable": 0}
    return predict_images(config, open_model(config), take)


def open_model(config: PredictConfig, classes: list[Any] | None = None) -> ImageClassifier:
    """The model at --model, or in the folder there. Imports torch only if it is no ONNX file. `classes`: entries of a
    class file, used in place of --classes."""
    model = config.model
    files = [name for name in (DESCRIPTION_FILE, ONNX_FILE) if storage.exists(storage.join(model, name))]
    if config.classes:
        require(
            not files and not is_work(model),
            f"--classes: the model in {model} has classes of its own; leave --classes out",
        )
        return open_with_torch(config, classes=classes)
    if DESCRIPTION_FILE in files:
        return open_with_torch(config)
    if ONNX_FILE in files or model.lower().endswith(".onnx"):
        return open_onnx(config)
    if model.lower().endswith(".safetensors"):
        return open_with_torch(config, zero_shot=True)
    for kind in ("bundle", "onnx", "classifier"):
        if uri := find_part(model, kind):
            require(
                kind != "classifier" or not storage.exists(storage.join(model, RECORD_FILE)),
                f"--model {model}: its model is not there; the same `must adapt` again makes it",
            )
            config = replace(config, model=uri)
            return open_onnx(config) if kind == "onnx" else open_with_torch(config, zero_shot=kind == "classifier")
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


def open_with_torch(
    config: PredictConfig, zero_shot: bool = False, classes: list[Any] | None = None
) -> ImageClassifier:
    """A bundle; with `zero_shot` the model of a classifier file; with --classes the CLIP model of the name --model."""
    load_torch("predict")
    from must.deploy.infer.bundle import open_bundle

    return open_bundle(config, zero_shot, classes)
