"""Class names and prompt templates -> zero-shot text classifier weights."""

from kfp import dsl

from must_components import images


@dsl.component(base_image=images.TORCH, install_kfp_package=False)
def classifier(
    work_uri: str,
    run_id: str,
    classes: str,
    model: str,
    weights: dsl.Output[dsl.Model],
    pretrained: str = "",
    fingerprint: str = "",
) -> str:
    """Computes the zero-shot classifier, or reuses the one of an earlier run with the same input. Never cached.

    `fingerprint`: of the files' contents, by the stage inputs; '' to compute it. Returns the sha256 of the file.
    """
    from must.runtime import stages
    from must.runtime.supervise import supervised

    computed = supervised(
        "classifier", stages.classifier, run_id, work_uri, classes=classes, model=model,
        pretrained=pretrained, fingerprint=fingerprint, weights=weights.path,
    )  # fmt: skip
    weights.metadata["display_name"] = f"zero-shot classifier, {computed['classes']} classes"
    weights.metadata.update(model=model, pretrained=pretrained, classes=computed["classes"], fingerprint=fingerprint)
    return computed["sha256"]
