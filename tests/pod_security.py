"""The level `restricted` of Kubernetes' Pod Security Standards, as its page has it for version 1.35, for Linux pods.

As far as pods of ours have the fields that it is about; another field of a security context is a violation here.
"""

from typing import Any

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
PROFILES = ("RuntimeDefault", "Localhost")
OF_PODS = {"runAsNonRoot", "runAsUser", "runAsGroup", "fsGroup", "fsGroupChangePolicy", "seccompProfile"}
OF_CONTAINERS = OF_PODS | {"allowPrivilegeEscalation", "capabilities", "readOnlyRootFilesystem"}


def violations(pod: dict[str, Any]) -> list[str]:
    """What Kubernetes would refuse a pod of this spec for; nothing where it is admitted."""
    found = [f"{name} is true" for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    context = pod.get("securityContext") or {}
    found += sorted(context.keys() - OF_PODS)
    for volume in pod.get("volumes", []):
        found += [f"volume {volume['name']}: {kind}" for kind in volume.keys() - {"name"} - VOLUMES]
    assert not {"initContainers", "ephemeralContainers"} & pod.keys()
    for container in pod["containers"]:
        found += [f"{container['name']}: {what}" for what in of_container(container, context)]
    return found


def of_container(container: dict[str, Any], pod: dict[str, Any]) -> list[str]:
    own = container.get("securityContext") or {}
    found = sorted(own.keys() - OF_CONTAINERS)
    if own.get("allowPrivilegeEscalation") is not False:
        found.append("allowPrivilegeEscalation is not false")
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        found.append("runAsNonRoot is not true")
    if 0 in (own.get("runAsUser"), pod.get("runAsUser")):
        found.append("runAsUser is 0")
    if (own.get("seccompProfile") or pod.get("seccompProfile") or {}).get("type") not in PROFILES:
        found.append("no seccompProfile")
    capabilities = own.get("capabilities") or {}
    if "ALL" not in capabilities.get("drop", []):
        found.append("capabilities are not dropped")
    found += [f"capability {one}" for one in capabilities.get("add", []) if one != "NET_BIND_SERVICE"]
    return found + [f"hostPort {port['hostPort']}" for port in container.get("ports", []) if port.get("hostPort")]
