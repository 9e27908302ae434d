"""Images -> WebDataset shards at a URI; returns the index and its sha256."""

from kfp import dsl

from must_components import images


@dsl.component(base_image=images.SHARD, install_kfp_package=False)
def shard(
    source: str,
    work_uri: str,
    run_id: str,
    index: dsl.Output[dsl.Dataset],
    test_source: str = "",
    labels: str = "none",
    split: str = "train=1",
    append: bool = False,
    settings: dict = {},  # noqa: B006 - becomes the parameter's default in the compiled pipeline
) -> str:
    """Packs images into WebDataset shards with an index. Never cached, because the source may change.

    Args:
        source: folder or bucket prefix of images, or a manifest; see `must shard --help`.
        work_uri: the shards go to its folder shards: gs://bucket/prefix or a path that all stages can reach.
        run_id: the run that the stage belongs to.
        test_source: labelled images for reporting, which become the split 'test'; empty for none.
        labels: where labels are: folder, csv or none.
        split: shares of `source` by split, such as train=0.9,test=0.1.
        append: add the source's new files to the existing shards.
        settings: other parameters of `must shard` by name, such as {"max_rejected": 0.05}.
        index: a copy of index.json; its metadata says where the shards are.

    Returns:
        The sha256 of index.json: downstream caching follows the data.
    """
    from must.runtime import stages
    from must.runtime.supervise import supervised

    sharded = supervised(
        "shard", stages.shard, run_id, work_uri, index=index.path, settings=settings, source=source,
        test_source=test_source, labels=labels, split=split, append=append,
    )  # fmt: skip
    sha256 = sharded.pop("sha256")
    index.metadata.update(sharded)
    return sha256
