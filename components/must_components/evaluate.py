"""Compares the adapted model with the zero-shot one: figures, confusion matrix and an HTML report."""

from kfp import dsl

from must_components import images


@dsl.component(base_image=images.TORCH, install_kfp_package=False)
def evaluate(
    work_uri: str,
    run_id: str,
    index_sha256: str,
    bundle: dsl.Input[dsl.Model],
    classifier: dsl.Input[dsl.Model],
    figures: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    details: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    split: str = "test",
) -> float:
    """Evaluates on one split, labelled or not. Never cached.

    Args:
        work_uri: shards are in its folder shards.
        run_id: the run that the stage belongs to.
        index_sha256: of the shards' index; another one is refused.
        bundle: the adapted model.
        classifier: the zero-shot classifier it is compared with.
        figures: the main numbers for the Kubeflow page.
        confusion: the confusion matrix, if there are labels and not too many classes.
        details: folder with metrics.json and predictions.csv.
        report: the same as an HTML page.
        split: the split to evaluate on.

    Returns:
        Top-1 of the adapted model, 0..1; -1 when the split has no labels.
    """
    from must.runtime import stages
    from must.runtime.supervise import supervised
    from must_components.kept import download_of

    evaluated = supervised(
        "evaluate", stages.evaluate, run_id, work_uri, index_sha256=index_sha256, bundle=bundle.path,
        classifier=classifier.path, split=split, details=details.path, report=report.path,
        link=download_of(f"{details.uri}/report.html"),
    )  # fmt: skip
    for name, value in evaluated.figures.items():
        figures.log_metric(name, value)
    if evaluated.confusion:
        confusion.metadata["display_name"] = "confusion matrix of the adapted model"
        confusion.log_confusion_matrix(evaluated.classes, evaluated.confusion)
    return evaluated.top1
