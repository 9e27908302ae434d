"""Images -> WebDataset shards at a URI, in one pod, or in several that each pack one part of the images."""

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
    """Packs images into WebDataset shards below work_uri, with an index. Never cached, because the source may change.

    `settings`: other parameters of `must shard` by name. Returns the sha256 of index.json; `index` is a copy of it.
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


@dsl.component(base_image=images.SHARD, install_kfp_package=False)
def shard_part(
    part: str,
    source: str,
    work_uri: str,
    run_id: str,
    test_source: str = "",
    labels: str = "none",
    split: str = "train=1",
    append: bool = False,
    settings: dict = {},  # noqa: B006 - becomes the parameter's default in the compiled pipeline
):
    """Reads, checks and packs this part's share of the images, by a hash of their names.

    `part` is I/N, such as 1/4; for the others see shard.
    """
    from must.runtime import stages
    from must.runtime.notes import part_name
    from must.runtime.supervise import supervised

    supervised(
        part_name("shard", part), stages.shard, run_id, work_uri, part=part, settings=settings,
        source=source, test_source=test_source, labels=labels, split=split, append=append,
    )  # fmt: skip
