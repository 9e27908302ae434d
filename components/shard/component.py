"""Images -> WebDataset shards at a URI; what is passed on is the index and its sha256."""

from kfp import dsl

from components import images


@dsl.component(base_image=images.SHARD, install_kfp_package=False)
def shard(
    source: str,
    work_uri: str,
    index: dsl.Output[dsl.Dataset],
    test_source: str = "",
    labels: str = "none",
    split: str = "train=1",
    append: bool = False,
    settings: dict = {},  # noqa: B006 - becomes the parameter's default in the compiled pipeline
) -> str:
    """Packs images into WebDataset shards with an index. Never cached, for it looks at the source each time.

    Args:
        source: folder or bucket prefix of images, or a manifest; see `must shard --help`.
        work_uri: the shards go to its folder shards: gs://bucket/prefix or a path that all stages see.
        test_source: labelled images for reporting, which become the split 'test'; nothing for none.
        labels: where labels stand: folder, csv or none.
        split: shares of `source` by split, such as train=0.9,test=0.1.
        append: add the source's new files to the shards that are there.
        settings: other parameters of `must shard` by name, such as {"max_rejected": 0.05}.
        index: a copy of index.json; its metadata says where the shards are.

    Returns:
        The sha256 of index.json: downstream caching follows the data.
    """
    from must.cli import call, run
    from must.run.inputs import sharding_settings
    from must.run.notes import noted
    from must.storage import join, read_bytes, write_bytes

    with noted(work_uri, "shard") as note:
        own = {
            "source": source, "output": join(work_uri, "shards"), "test_source": test_source, "labels": labels,
            "split": split, "append": append,
        }  # fmt: skip
        result = run("shard", **call("shard", sharding_settings, settings, own))
        count = sum(shard.samples for shard in result.shards)
        note.result = f"{count:,} images, revision {result.revision}"
        write_bytes(index.path, read_bytes(join(work_uri, "shards", "index.json")))
        index.metadata.update(shards=join(work_uri, "shards"), revision=result.revision, images=count)
    return result.sha256
