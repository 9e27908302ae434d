"""Training as a TrainJob, on one node or several: submits a TrainJob to Kubeflow Trainer and waits for it."""

from kfp import dsl

from must_components import images


@dsl.component(base_image=images.SHARD, install_kfp_package=False)
def train_job(
    work_uri: str,
    run_id: str,
    index_sha256: str,
    classifier: dsl.Input[dsl.Model],
    bundle: dsl.Output[dsl.Model],
    training: dsl.Output[dsl.Metrics],
    nodes: dict,
    preset: str = "",
    settings: dict = {},  # noqa: B006 - becomes the parameter's default in the compiled pipeline
    epochs: int = 0,
    tensorboard_uri: str = "",
    model_name: str = "",
    answers: str = "",
) -> str:
    """Trains MUST in a TrainJob; a retry follows the running job. Returns the weights' sha256. Never cached.

    `nodes`: number and settings of the nodes, from cluster.yaml. `model_name`: a label of the job.
    """
    from must.runtime.supervise import supervised
    from must_components.train_job.launch import train_on_nodes

    trained = supervised(
        "train", train_on_nodes, run_id, work_uri, index_sha256=index_sha256,
        classifier=classifier.path, output=bundle.path, nodes=nodes, preset=preset, settings=settings,
        epochs=epochs, tensorboard_uri=tensorboard_uri, model_name=model_name,
        answers=answers,
    )  # fmt: skip
    for name, value in trained["summary"].items():
        training.log_metric(name, float(value))
    bundle.metadata.update(trained["metadata"])
    return trained["metadata"]["sha256"]
