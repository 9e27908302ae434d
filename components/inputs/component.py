"""A checksum of the class file and the model files: the cache of the stages after it follows their content."""

from kfp import dsl

from components import images


@dsl.component(base_image=images.SHARD, install_kfp_package=False)
def inputs(work_uri: str, run_id: str, classes: str, model: str, pretrained: str = "") -> str:
    """Looks at what the run's parameters name. Never cached.

    Args:
        work_uri: where the run's notes go.
        run_id: the run that the stage belongs to.
        classes: path or URI of the class file, or the set that ships: imagenet.
        model: open_clip model name, or a model folder.
        pretrained: open_clip pretrained tag, or a checkpoint file.

    Returns:
        A sha256 that changes with what these hold.
    """
    from must.run.supervise import supervised

    return supervised(
        "inputs", "must.run.stages:inputs", run_id, work_uri, classes=classes, model=model, pretrained=pretrained
    )
