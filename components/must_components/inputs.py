"""A first look at the run's parameters and what they name: what a later stage would refuse is refused here."""

from kfp import dsl

from must_components import images


@dsl.component(base_image=images.TORCH, install_kfp_package=False)
def inputs(
    work_uri: str,
    run_id: str,
    classes: str,
    model: str,
    pretrained: str = "",
    labels: str = "none",
    split: str = "train=1",
    shard_settings: dict = {},  # noqa: B006 - becomes the parameter's default in the compiled pipeline
    preset: str = "",
    epochs: int = 0,
    settings: dict = {},  # noqa: B006
    precision: str = "fp32",
    gate: str = "label-free",
    gate_settings: dict = {},  # noqa: B006
    model_name: str = "model",
    register: str = "none",
    serve: str = "none",
    registry_uri: str = "",
    predict_uri: str = "",
    tensorboard_uri: str = "",
    server: dict = {},  # noqa: B006
    runtime: str = "",
) -> str:
    """Checks them and sums them up. Never cached.

    Args:
        work_uri: where the run's notes go.
        run_id: the run that the stage belongs to.
        classes: path or URI of the class file, or the set that ships: imagenet.
        model: open_clip model name, or a model folder; it may be in a bucket.
        pretrained: open_clip pretrained tag, or a checkpoint file.
        labels: as the shard stage gets it.
        split: as the shard stage gets it.
        shard_settings: as the shard stage gets them.
        preset: as the train stage gets it.
        epochs: as the train stage gets it.
        settings: as the train stage gets them.
        precision: as the export stage gets it.
        gate: as the gate stage gets it.
        gate_settings: as the gate stage gets them.
        model_name: as the promote stage gets it.
        register: as the promote stage gets it.
        serve: none, or how the serve stage is to work.
        registry_uri: as the promote stage gets it; tried, as the next two are, whether it can be written to.
        predict_uri: as the predict stage gets it.
        tensorboard_uri: as the train stage gets it.
        server: as the serve stage gets it.
        runtime: of the TrainJob that trains; nothing where it is none.

    Returns:
        A sha256 that changes with what the class file and the model files hold.
    """
    from must.runtime.supervise import supervised
    from must_components import first_look

    parameters = {
        "classes": classes, "model": model, "pretrained": pretrained, "labels": labels, "split": split,
        "shard_settings": shard_settings, "preset": preset, "epochs": epochs, "settings": settings,
        "precision": precision, "gate": gate, "gate_settings": gate_settings, "model_name": model_name,
        "register": register, "serve": serve, "registry_uri": registry_uri, "predict_uri": predict_uri,
        "tensorboard_uri": tensorboard_uri,
    }  # fmt: skip
    return supervised(
        "inputs", first_look.inputs, run_id, work_uri, parameters=parameters, server=server, runtime=runtime
    )
