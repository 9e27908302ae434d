"""Adapted model against the zero-shot one: figures, confusion matrix and an HTML report."""

from kfp import dsl

from components import images


@dsl.component(base_image=images.TORCH, install_kfp_package=False)
def evaluate(
    work_uri: str,
    index_sha256: str,
    classifier_sha256: str,
    bundle_sha256: str,
    bundle: dsl.Input[dsl.Model],
    classifier: dsl.Input[dsl.Model],
    figures: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    details: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    split: str = "test",
) -> float:
    """Evaluates on one split, labelled or not.

    Args:
        work_uri: shards are in its folder shards.
        index_sha256: of the shards' index, another one is refused; this and the next two are the cache's key.
        classifier_sha256: of the classifier file.
        bundle_sha256: of the model's weights.
        bundle: the adapted model.
        classifier: the zero-shot classifier it is compared with.
        figures: headline numbers for the Kubeflow page.
        confusion: the confusion matrix, where there are labels and not too many classes.
        details: folder with metrics.json and predictions.csv.
        report: the same as a page to read.
        split: the split to evaluate on.

    Returns:
        Top-1 of the adapted model, 0..1; -1 when the split has no labels.
    """
    from must.run import cards
    from must.run.notes import noted

    with noted(work_uri, "evaluate") as note:
        metrics = cards.evaluate(work_uri, index_sha256, bundle.path, classifier.path, split, details.path, report.path)
        note.result = cards.headline(metrics)
    for name, value in cards.figures(metrics).items():
        figures.log_metric(name, value)
    if matrix := cards.confusion(metrics):
        confusion.log_confusion_matrix(metrics["classes"], matrix)
    return metrics["adapted"].get("top1", -1.0)
