"""Images -> WebDataset shards at a URI; what is passed on is the index and its sha256."""

from kfp import dsl

from components import images


@dsl.component(base_image=images.SHARD, install_kfp_package=False)
def shard(
    source: str,
    output_uri: str,
    index: dsl.Output[dsl.Dataset],
    test_source: str = "",
    labels: str = "none",
    split: str = "train=1",
    samples_per_shard: int = 1000,
) -> str:
    """Packs images into WebDataset shards with an index.

    Args:
        source: folder or bucket prefix of images, or a manifest; see `must shard --help`.
        output_uri: where the shards go: gs://bucket/prefix or a path that all stages see.
        test_source: labelled images for reporting, which become the split 'test'; nothing for none.
        labels: where labels stand: folder, csv or none.
        split: shares of `source` by split, such as train=0.9,test=0.1.
        samples_per_shard: images in a shard.
        index: a copy of index.json; its URI metadata says where the shards are.

    Returns:
        The sha256 of index.json: downstream caching follows the data.
    """
    import shutil
    from pathlib import Path

    from must.cli import run
    from must.storage import download, join

    result = run(
        "shard", source=source, output=output_uri, test_source=test_source, labels=labels, split=split,
        samples_per_shard=samples_per_shard,
    )  # fmt: skip
    shutil.rmtree(index.path, ignore_errors=True)
    Path(index.path).parent.mkdir(parents=True, exist_ok=True)
    download(join(output_uri, "index.json"), index.path)
    index.metadata.update(shards=output_uri, revision=result.revision, images=sum(s.samples for s in result.shards))
    return result.sha256
