"""A KServe InferenceService for the registry's champion."""

from kfp import dsl

from must_components import images


@dsl.component(base_image=images.SHARD, install_kfp_package=False)
def serve(
    work_uri: str,
    run_id: str,
    version: str,
    service: dsl.Output[dsl.Artifact],
    server: dict,
    model_name: str,
    registry_uri: str = "",
    how: str = "write",
) -> str:
    """Writes the manifest beside LATEST, and may apply it. Returns its URI. Never cached.

    `server`: settings of the server's pods, from cluster.yaml. `how`: write, or apply (write and apply).
    """
    from must.runtime.supervise import supervised
    from must_components.serving.service import serve as service_stage

    written = supervised(
        "serve", service_stage, run_id, work_uri, registry_uri=registry_uri,
        model_name=model_name, how=how, server=server, output=service.path,
    )  # fmt: skip
    service.metadata.update(written | {"version": version})
    return written["manifest"]
