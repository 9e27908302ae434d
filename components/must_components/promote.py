"""Makes the challenger a version of the registry, and its champion."""

from kfp import dsl

from must_components import images


@dsl.component(base_image=images.SHARD, install_kfp_package=False)
def promote(
    work_uri: str,
    run_id: str,
    bundle: dsl.Input[dsl.Model],
    onnx: dsl.Input[dsl.Model],
    details: dsl.Input[dsl.Artifact],
    decision: dsl.Input[dsl.Artifact],
    promoted: dsl.Output[dsl.Model],
    key: str,
    model_name: str,
    registry_uri: str = "",
    champion: str = "none",
) -> str:
    """Copies bundle and ONNX model, sets LATEST unless another run has changed it. Returns the version. Never cached.

    `champion` is the version that the model was compared with.
    """
    from must.runtime import stages
    from must.runtime.supervise import supervised

    facts = supervised(
        "promote", stages.promote, run_id, work_uri, bundle=bundle.path, onnx=onnx.path,
        details=details.path, decision=decision.path, registry_uri=registry_uri, model_name=model_name, key=key,
        champion=champion, output=promoted.path,
    )  # fmt: skip
    promoted.metadata.update(facts | {"display_name": f"{model_name} {facts['version']}"})
    return facts["version"]
