"""Reads the registry before training: the champion, and whether there is anything new."""

from kfp import dsl

from must_components import images


@dsl.component(base_image=images.TORCH, install_kfp_package=False)
def champion(
    work_uri: str,
    run_id: str,
    index_sha256: str,
    classifier: dsl.Input[dsl.Model],
    model_name: str,
    version: dsl.OutputPath(str),  # type: ignore[valid-type]
    bundle_uri: dsl.OutputPath(str),  # type: ignore[valid-type]
    key: dsl.OutputPath(str),  # type: ignore[valid-type]
    split: dsl.OutputPath(str),  # type: ignore[valid-type]
    registry_uri: str = "",
    preset: str = "",
    settings: dict = {},  # noqa: B006 - becomes the parameter's default in the compiled pipeline
    epochs: int = 0,
    only_new: bool = False,
    gate: str = "auto",
    evaluate_split: str = "",
    answers: str = "",
) -> str:
    """Reads the registry: the champion's version, or none, and its bundle; checks that the run can be evaluated.

    Returns train, or nothing new. `key` identifies the data, the classes, the settings and the answers of this run;
    `split` is the one to evaluate on. Never cached.
    """
    from pathlib import Path

    from must.runtime import stages
    from must.runtime.supervise import supervised

    best = supervised(
        "champion", stages.champion, run_id, work_uri, registry_uri=registry_uri, name=model_name,
        index_sha256=index_sha256, classifier=classifier.path, preset=preset, settings=settings, epochs=epochs,
        only_new=only_new, gate=gate, evaluate_split=evaluate_split, answers=answers,
    )  # fmt: skip
    for path, name in ((version, "version"), (bundle_uri, "bundle"), (key, "key"), (split, "split")):
        Path(path).write_text(best[name])
    return best["action"]
