"""Predicts a class for every image of the shards, as Parquet files. Several pods may share the work."""

from kfp import dsl

from must_components import images


@dsl.component(base_image=images.TORCH, install_kfp_package=False)
def predict(
    part: str,
    work_uri: str,
    run_id: str,
    index_sha256: str,
    onnx: dsl.Input[dsl.Model],
    promoted: dsl.Input[dsl.Model],
    predict_uri: str,
    settings: dict = {},  # noqa: B006 - becomes the parameter's default in the compiled pipeline
):
    """Labels every N-th shard; the part that ends last writes the summary. Never cached.

    `part` is I/N, such as 1/4. `promoted` has the version; the files go to its folder in `predict_uri`.
    """
    from must.runtime import stages
    from must.runtime.notes import part_name
    from must.runtime.supervise import supervised

    supervised(
        part_name("predict", part), stages.predict, run_id, work_uri, part=part, index_sha256=index_sha256,
        onnx=onnx.path, settings=settings, output=f"{predict_uri.rstrip('/')}/{promoted.metadata['version']}",
    )  # fmt: skip
