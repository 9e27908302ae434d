"""Adapted model -> ONNX, checked against PyTorch."""

from kfp import dsl

from components import images


@dsl.component(base_image=images.TORCH, install_kfp_package=False)
def export(
    work_uri: str,
    index_sha256: str,
    bundle_sha256: str,
    bundle: dsl.Input[dsl.Model],
    details: dsl.Input[dsl.Artifact],
    onnx: dsl.Output[dsl.Model],
    precision: str = "fp32",
) -> None:
    """Exports the model with its class names and preprocessing.

    Args:
        work_uri: the shards in its folder shards have the images that the export is checked with.
        index_sha256: of the shards' index, another one is refused; this and the next are the cache's key.
        bundle_sha256: of the model's weights.
        bundle: the adapted model.
        details: of the evaluation, for the model card.
        onnx: folder with model.onnx, labels.txt and the model card.
        precision: fp32, fp16 or int8.
    """
    from must.cli import run
    from must.run import cards
    from must.run.notes import noted

    with noted(work_uri, "export") as note:
        run(
            "export", model=bundle.path, output=onnx.path, precision=precision, shards=f"{work_uri}/shards",
            index_sha256=index_sha256, metrics=f"{details.path}/metrics.json",
        )  # fmt: skip
        note.result = f"ONNX, {precision}"
    onnx.metadata.update(precision=precision, framework="onnx", **cards.model_facts(bundle.path, details.path))
