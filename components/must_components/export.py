"""Adapted model -> ONNX, checked against PyTorch."""

from kfp import dsl

from must_components import images


@dsl.component(base_image=images.TORCH, install_kfp_package=False)
def export(
    work_uri: str,
    run_id: str,
    index_sha256: str,
    bundle: dsl.Input[dsl.Model],
    details: dsl.Input[dsl.Artifact],
    onnx: dsl.Output[dsl.Model],
    precision: str = "fp32",
    embeddings: bool = False,
) -> None:
    """Exports the model with its class names and preprocessing, and checks it on images of the shards. Never cached."""
    from must.runtime import stages
    from must.runtime.supervise import supervised

    facts = supervised(
        "export", stages.export, run_id, work_uri, index_sha256=index_sha256, bundle=bundle.path,
        details=details.path, onnx=onnx.path, precision=precision, embeddings=embeddings,
    )  # fmt: skip
    onnx.metadata.update(facts | {"display_name": f"adapted model {facts['sha256'][:12]} (ONNX, {precision})"})
