"""Shards and text classifier -> adapted model, by masked unsupervised self-training."""

from typing import Any

from kfp import dsl

from must_components import images


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def train(
    work_uri: str,
    run_id: str,
    index_sha256: str,
    classifier: dsl.Input[dsl.Model],
    bundle: dsl.Output[dsl.Model],
    training: dsl.Output[dsl.Metrics],
    preset: str = "",
    settings: dict = {},  # noqa: B006 - becomes the parameter's default in the compiled pipeline
    epochs: int = 0,
    processes: str = "auto",
    nodes: dict = {},  # noqa: B006
    tensorboard_uri: str = "",
    model_name: str = "",
    answers: str = "",
) -> str:
    """Trains MUST; a retry resumes from the newest checkpoint. Returns the weights' sha256. Never cached.

    `processes`: a number, or auto for one per GPU; several run under torchrun. `nodes`, from cluster.yaml: trains in a
    TrainJob of Kubeflow Trainer instead, which a retry follows; `model_name` is a label of the job.
    """
    from must.runtime.supervise import supervised

    values: dict[str, Any] = {
        "index_sha256": index_sha256, "classifier": classifier.path, "output": bundle.path, "preset": preset,
        "settings": settings, "epochs": epochs, "tensorboard_uri": tensorboard_uri, "answers": answers,
    }  # fmt: skip
    if nodes:
        from must_components.train_job.launch import train_on_nodes

        trained = supervised("train", train_on_nodes, run_id, work_uri, nodes=nodes, model_name=model_name, **values)
    else:
        from must.runtime import stages

        trained = supervised("train", stages.train, run_id, work_uri, processes=processes, **values)
    for name, value in trained["summary"].items():
        training.log_metric(name, float(value))
    bundle.metadata.update(trained["metadata"])
    return trained["metadata"]["sha256"]
