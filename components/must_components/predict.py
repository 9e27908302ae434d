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

    Args:
        part: I/N, such as 1/4.
        work_uri: shards are in its folder shards.
        run_id: the run that the stage belongs to.
        index_sha256: of the shards' index; another one is refused.
        onnx: the exported model.
        promoted: has the version as which it was promoted.
        predict_uri: the files go to a folder of that version.
        settings: other parameters of `must predict` by name, such as {"abstain": 0.8}.
    """
    from must.runtime import stages
    from must.runtime.stages import part_name
    from must.runtime.supervise import supervised

    supervised(
        part_name("predict", part), stages.predict, run_id, work_uri, part=part, index_sha256=index_sha256,
        onnx=onnx.path, settings=settings, output=f"{predict_uri.rstrip('/')}/{promoted.metadata['version']}",
    )  # fmt: skip
