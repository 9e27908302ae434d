"""What a TrainJob's nodes and a server have in common: pods of other controllers. `settings` is the dictionary that
`encode_pods` in must_pipeline/cluster/placement.py makes of cluster.yaml."""

from typing import Any


def place_pod(settings: dict[str, Any]) -> dict[str, Any]:
    """Service account, selector, tolerations and pull secrets, as far as there are any."""
    spec = {
        "serviceAccountName": settings["service_account"],
        "imagePullSecrets": [{"name": secret} for secret in settings["pull_secrets"]],
        "nodeSelector": settings["node_selector"],
        "tolerations": settings["tolerations"],
    }
    return {key: value for key, value in spec.items() if value}


def list_environment(settings: dict[str, Any], **defaults: str) -> list[dict[str, str]]:
    env = defaults | settings["env"]
    if settings["secret"]:
        env[settings["secret_variable"]] = f"{settings['secret_mount']}/{settings['secret_key']}"
    return [{"name": key, "value": value} for key, value in env.items()]


def list_volumes(
    scratch: dict[str, tuple[str, Any]], settings: dict[str, Any], read_only: bool = False
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A pod's volumes, and its container's mounts. `scratch`: by name the folder and the source of a volume of its own;
    `read_only`: the others."""
    more: dict[str, Any] = {"readOnly": True} if read_only else {}
    others = dict[str, tuple[str, Any]]()
    if settings["secret"]:
        others["key"] = settings["secret_mount"], {"secret": {"secretName": settings["secret"]}}
    if settings["claim"]:
        claim = {"claimName": settings["claim"], **more}
        others["data"] = settings["mount"], {"persistentVolumeClaim": claim}
    mounts: list[dict[str, Any]] = [{"name": name, "mountPath": mount} for name, (mount, _) in scratch.items()]
    mounts += [{"name": name, "mountPath": mount, **more} for name, (mount, _) in others.items()]
    return [{"name": name, **source} for name, (_, source) in (scratch | others).items()], mounts
