"""Class names and prompt templates -> zero-shot text classifier weights."""

from kfp import dsl

from components import images


@dsl.component(base_image=images.TORCH, install_kfp_package=False)
def classifier(
    work_uri: str, classes: str, model: str, fingerprint: str, weights: dsl.Output[dsl.Model], pretrained: str = ""
) -> str:
    """Computes the zero-shot classifier.

    Args:
        work_uri: where the run's notes go.
        classes: path or URI of a YAML file with classes and templates, or the set that ships: imagenet.
        model: open_clip model name, or a model folder.
        fingerprint: of what these hold; another one is computed anew instead of taken from the cache.
        pretrained: open_clip pretrained tag, or a checkpoint file.
        weights: the classifier file (.safetensors).

    Returns:
        The sha256 of the classifier file.
    """
    import hashlib
    from pathlib import Path

    from must.cli import run
    from must.run.notes import noted

    with noted(work_uri, "classifier") as note:
        result = run("classifier", classes=classes, model=model, pretrained=pretrained, output=weights.path)
        note.result = f"{len(result.classes)} classes"
    weights.metadata.update(model=model, pretrained=pretrained, classes=len(result.classes), fingerprint=fingerprint)
    return hashlib.sha256(Path(weights.path).read_bytes()).hexdigest()
