"""Shards and text classifier -> adapted model, by masked unsupervised self-training."""

from kfp import dsl

from components import images


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def train(
    shards_uri: str,
    index_sha256: str,
    checkpoints_uri: str,
    classifier: dsl.Input[dsl.Model],
    bundle: dsl.Output[dsl.Model],
    training: dsl.Output[dsl.Metrics],
    preset: str = "",
    settings: dict = {},  # noqa: B006 - becomes the parameter's default in the compiled pipeline
    processes: int = 1,
) -> None:
    """Trains MUST; goes on from the newest checkpoint when it is retried.

    Args:
        shards_uri: where the shard stage put the shards.
        index_sha256: of their index; a change of the data changes the stage's inputs.
        checkpoints_uri: where checkpoints are kept, a folder a run's data and settings; must outlive the pod.
        classifier: text classifier file.
        bundle: the adapted model, with its log.
        training: the run's figures.
        preset: published settings of a data set; see `must train --help`.
        settings: any parameters of `must train` by name; they win over the preset.
        processes: training processes in this pod, one a GPU; with more than one they run under torchrun.
    """
    from must.cli import run
    from must.train.launch import launch
    from must.train.provenance import run_key

    values = {**settings, "preset": preset, "shards": shards_uri, "classifier": classifier.path, "output": bundle.path}
    key = run_key(index_sha256, classifier.path, {**settings, "preset": preset})
    values["checkpoints"] = f"{checkpoints_uri}/{key}"
    summary = run("train", **values) if processes == 1 else launch(values, processes)
    for name, value in summary.items():
        training.log_metric(name, float(value or 0))
    bundle.metadata.update(index_sha256=index_sha256, preset=preset, **summary)
