"""Class names and prompt templates -> zero-shot text classifier weights."""

from kfp import dsl

from components import images


@dsl.component(base_image=images.TORCH, install_kfp_package=False)
def classifier(classes: str, model: str, weights: dsl.Output[dsl.Model], pretrained: str = "") -> str:
    """Computes the zero-shot classifier.

    Args:
        classes: path or URI of a YAML file with classes and templates, or the set that ships: imagenet.
        model: open_clip model name, or a model folder.
        pretrained: open_clip pretrained tag, or a checkpoint file.
        weights: the classifier file (.safetensors).

    Returns:
        The number of classes, as text.
    """
    from must.cli import run

    result = run("classifier", classes=classes, model=model, pretrained=pretrained, output=weights.path)
    weights.metadata.update(model=model, pretrained=pretrained, classes=len(result.classes))
    return str(len(result.classes))
