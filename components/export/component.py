"""Adapted model -> ONNX, checked against PyTorch."""

from kfp import dsl

from components import images


@dsl.component(base_image=images.TORCH, install_kfp_package=False)
def export(shards_uri: str, bundle: dsl.Input[dsl.Model], onnx: dsl.Output[dsl.Model], precision: str = "fp32") -> None:
    """Exports the model with its class names and preprocessing.

    Args:
        shards_uri: shards whose images the export is checked with.
        bundle: the adapted model.
        onnx: folder with model.onnx and labels.txt.
        precision: fp32, fp16 or int8.
    """
    from must.cli import run

    run("export", model=bundle.path, output=onnx.path, precision=precision, shards=shards_uri)
    onnx.metadata.update(precision=precision, framework="onnx")
