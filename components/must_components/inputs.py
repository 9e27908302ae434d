"""Checks the run's parameters, and the files they name, before any later stage would refuse them."""

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
    gate: str = "auto",
    gate_settings: dict = {},  # noqa: B006
    model_name: str = "model",
    serve: str = "none",
    registry_uri: str = "",
    predict_uri: str = "",
    predict_pods: int = 0,
    tensorboard_uri: str = "",
    answers: str = "",
    server: dict = {},  # noqa: B006
    runtime: str = "",
) -> str:
    """Checks the run's parameters, its input files and the folders that it writes to. Never cached.

    `runtime` is empty if training is not a TrainJob. Returns a sha256 of the contents of class file and model files.
    """
    from must.runtime.supervise import supervised
    from must_components import cluster

    parameters = {
        "classes": classes, "model": model, "pretrained": pretrained, "labels": labels, "split": split,
        "shard_settings": shard_settings, "preset": preset, "epochs": epochs, "settings": settings,
        "precision": precision, "gate": gate, "gate_settings": gate_settings, "model_name": model_name,
        "serve": serve, "registry_uri": registry_uri, "predict_uri": predict_uri,
        "tensorboard_uri": tensorboard_uri, "predict_pods": predict_pods, "answers": answers,
    }  # fmt: skip
    return supervised(
        "inputs", cluster.check_inputs, run_id, work_uri, parameters=parameters, server=server, runtime=runtime
    )
