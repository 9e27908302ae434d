"""A KServe InferenceService for the registry's champion."""

from kfp import dsl

from must_components import images


@dsl.component(base_image=images.LAUNCHER, install_kfp_package=False)
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
    """Writes it beside LATEST, and applies it where it is asked to. Never cached.

    Args:
        work_uri: where the run's notes go; the registry is its folder registry where `registry_uri` is empty.
        run_id: the run that the stage belongs to.
        version: what was promoted; the server finds it by LATEST.
        service: the manifest.
        server: what the server's pods are like, from cluster.yaml.
        model_name: the model's name in the registry, and the service's.
        registry_uri: where promoted models live.
        how: write, or apply too.

    Returns:
        Where the manifest is.
    """
    from must.runtime.supervise import supervised
    from must_components.serving.service import serve as service_stage

    made = supervised(
        "serve", service_stage, run_id, work_uri, registry_uri=registry_uri,
        model_name=model_name, how=how, server=server, output=service.path,
    )  # fmt: skip
    service.metadata.update(manifest=made.manifest, namespace=made.namespace, version=version)
    return made.manifest
