"""Decides whether the adapted model may be promoted: the decision, its reasons, and a page."""

from kfp import dsl

from must_components import images


@dsl.component(base_image=images.TORCH, install_kfp_package=False)
def gate(
    work_uri: str,
    run_id: str,
    bundle: dsl.Input[dsl.Model],
    details: dsl.Input[dsl.Artifact],
    decision: dsl.Output[dsl.Artifact],
    reasons: dsl.Output[dsl.Markdown],
    key: str,
    model_name: str,
    registry_uri: str = "",
    champion: str = "none",
    champion_uri: str = "",
    gate: str = "auto",
    gate_settings: dict = {},  # noqa: B006 - becomes the parameter's default in the compiled pipeline
    split: str = "test",
) -> str:
    """Compares with the zero-shot model, and with the champion if any (labelled: only with that). Never cached.

    `details` is the folder that `must evaluate` wrote. A stopped model is recorded under `key`.
    Returns promote or stop.
    """
    from must.runtime import stages
    from must.runtime.supervise import supervised

    return supervised(
        "gate", stages.gate, run_id, work_uri, bundle=bundle.path, details=details.path,
        registry_uri=registry_uri, model_name=model_name, key=key, champion=champion,
        champion_uri=champion_uri, gate=gate, settings=gate_settings, split=split, decision=decision.path,
        page=reasons.path,
    )  # fmt: skip
