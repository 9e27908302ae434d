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
    """Evaluates on one split, labelled or not; `details` is the folder that `must evaluate` writes. Never cached.

    Returns top-1 of the adapted model, 0..1; -1 if the split has no labels.
    """
    from must.runtime import stages
    from must.runtime.supervise import supervised

    evaluated = supervised(
        "evaluate", stages.evaluate, run_id, work_uri, index_sha256=index_sha256, bundle=bundle.path,
        classifier=classifier.path, split=split, details=details.path, report=report.path,
    )  # fmt: skip
    for name, value in evaluated["figures"].items():
        figures.log_metric(name, value)
    if evaluated["confusion"]:
        confusion.metadata["display_name"] = "confusion matrix of the adapted model"
        confusion.log_confusion_matrix(evaluated["classes"], evaluated["confusion"])
    return evaluated["top1"]
