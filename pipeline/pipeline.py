"""The DAG: shard and classifier, then train, evaluate and export."""

from kfp import dsl

from components.classifier.component import classifier
from components.evaluate.component import evaluate
from components.export.component import export
from components.shard.component import shard
from components.train.component import train


@dsl.pipeline(
    name="must",
    description="Adapts CLIP to unlabeled images: masked unsupervised self-training (arXiv 2206.02967).",
)
def must_pipeline(
    source: str,
    classes: str,
    work_uri: str,
    model: str = "ViT-B-16-quickgelu",
    pretrained: str = "openai",
    test_source: str = "",
    labels: str = "none",
    split: str = "train=1",
    evaluate_split: str = "test",
    preset: str = "",
    settings: dict = {},  # noqa: B006 - becomes the parameter's default in the compiled pipeline
    precision: str = "fp32",
):
    """Images and class names in, an adapted and evaluated ONNX model out.

    Args:
        source: folder or bucket prefix of unlabeled images, or a manifest.
        classes: YAML file with class names and prompt templates, or imagenet.
        work_uri: where shards and checkpoints go: gs://bucket/prefix or a path that all stages see.
        model: open_clip model name, or a model folder.
        pretrained: open_clip pretrained tag, or a checkpoint file; nothing for a model folder.
        test_source: labelled images for reporting, which become the split 'test'.
        labels: where labels stand: folder, csv or none.
        split: shares of `source` by split, such as train=0.9,test=0.1.
        evaluate_split: the split to evaluate on.
        preset: published settings of a data set, such as imagenet.
        settings: parameters of `must train` by name; they win over the preset.
        precision: of the ONNX model: fp32, fp16 or int8.
    """
    shards_uri, checkpoints_uri = f"{work_uri}/shards", f"{work_uri}/checkpoints"
    sharded = shard(
        source=source, output_uri=shards_uri, test_source=test_source, labels=labels, split=split
    ).set_display_name("shard images")  # fmt: skip
    text = classifier(classes=classes, model=model, pretrained=pretrained).set_display_name("zero-shot classifier")
    trained = (
        train(
            shards_uri=shards_uri,
            index_sha256=sharded.outputs["Output"],
            checkpoints_uri=checkpoints_uri,
            classifier=text.outputs["weights"],
            preset=preset,
            settings=settings,
        )
        .set_display_name("train MUST")
        .set_caching_options(False)
        .set_retry(num_retries=3)
    )
    evaluate(
        shards_uri=shards_uri,
        index_sha256=sharded.outputs["Output"],
        bundle=trained.outputs["bundle"],
        classifier=text.outputs["weights"],
        split=evaluate_split,
    )
    export(shards_uri=shards_uri, bundle=trained.outputs["bundle"], precision=precision).set_display_name("export ONNX")
