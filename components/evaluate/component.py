"""Adapted model against the zero-shot one: figures, confusion matrix and an HTML report."""

from kfp import dsl

from components import images


@dsl.component(base_image=images.TORCH, install_kfp_package=False)
def evaluate(
    shards_uri: str,
    index_sha256: str,
    bundle: dsl.Input[dsl.Model],
    classifier: dsl.Input[dsl.Model],
    figures: dsl.Output[dsl.Metrics],
    details: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    split: str = "test",
) -> float:
    """Evaluates on one split, labelled or not.

    Args:
        shards_uri: where the shard stage put the shards.
        index_sha256: of their index; a change of the data changes the stage's inputs.
        bundle: the adapted model.
        classifier: the zero-shot classifier it is compared with.
        figures: headline numbers for the Kubeflow page.
        details: folder with metrics.json and predictions.csv.
        report: the same as a page to read.
        split: the split to evaluate on.

    Returns:
        Top-1 of the adapted model, 0..1; -1 when the split has no labels.
    """
    import shutil

    from must.cli import run

    metrics = run(
        "evaluate", model=bundle.path, baseline=classifier.path, shards=shards_uri, split=split, output=details.path
    )
    shutil.copyfile(f"{details.path}/report.html", report.path)
    for model in ("baseline", "adapted"):
        for name, value in (metrics.get(model) or {}).items():
            if isinstance(value, float):
                figures.log_metric(f"{model}_{name}", value)
    return metrics["adapted"].get("top1", -1.0)
