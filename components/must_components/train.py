"""Shards and text classifier -> adapted model, by masked unsupervised self-training."""

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
    tensorboard_uri: str = "",
) -> str:
    """Trains MUST; a retry resumes from the newest checkpoint. Never cached.

    Args:
        work_uri: shards are in its folder shards; checkpoints go to checkpoints, one folder for each data and settings.
        run_id: the run that the stage belongs to.
        index_sha256: of the shards' index; another one is refused.
        classifier: text classifier file.
        bundle: the adapted model, with its log.
        training: the run's figures.
        preset: published settings of a data set; see `must train --help`.
        settings: any parameters of `must train` by name; they win over the preset.
        epochs: passes over the data; 0 leaves it to settings and preset.
        processes: training processes: a number, or auto for one per GPU. Several run under torchrun.
        tensorboard_uri: where the curves are copied to while it trains; empty for no copy.

    Returns:
        The sha256 of the model's weights.
    """
    from must.runtime import stages
    from must.runtime.evaluation import plain
    from must.runtime.supervise import supervised

    trained = supervised(
        "train", stages.train, run_id, work_uri, index_sha256=index_sha256,
        classifier=classifier.path, output=bundle.path,
        preset=preset, settings=settings, epochs=epochs, processes=processes, tensorboard_uri=tensorboard_uri,
    )  # fmt: skip
    for name, value in plain(trained.summary).items():
        training.log_metric(name, float(value))
    bundle.metadata.update(trained.metadata)
    return trained.origin["sha256"]
