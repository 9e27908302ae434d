"""The level `restricted` of Kubernetes' Pod Security Standards, as its page has it for version 1.35, for Linux pods."""

from typing import Any

VERSION = "v1.35"
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
PROFILES = ("RuntimeDefault", "Localhost")
SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}  # fmt: skip
SELINUX = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}


def violations(pod: dict[str, Any]) -> list[str]:
    """What Kubernetes would refuse a pod of this spec for; nothing where it is admitted."""
    found = [f"{name} is true" for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    context = pod.get("securityContext") or {}
    found += [f"sysctl {one['name']}" for one in context.get("sysctls", []) if one["name"] not in SYSCTLS]
    found += profiles(context, "pod")
    for volume in pod.get("volumes", []):
        found += [f"volume {volume['name']}: {kind}" for kind in volume.keys() - {"name"} - VOLUMES]
    containers = [one for kind in ("initContainers", "containers", "ephemeralContainers") for one in pod.get(kind, [])]
    assert containers
    for container in containers:
        found += [f"{container['name']}: {what}" for what in of_container(container, context)]
    return found


def of_container(container: dict[str, Any], pod: dict[str, Any]) -> list[str]:
    own = container.get("securityContext") or {}
    found = profiles(own, "container")
    if own.get("allowPrivilegeEscalation") is not False:
        found.append("allowPrivilegeEscalation is not false")
    if own.get("privileged"):
        found.append("privileged")
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
    if own.get("procMount", "Default") != "Default":
        found.append("procMount")
    found += [f"hostPort {port['hostPort']}" for port in container.get("ports", []) if port.get("hostPort")]
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        asked = container.get(probe) or {}
        found += [f"{probe} of host" for kind in ("httpGet", "tcpSocket") if (asked.get(kind) or {}).get("host")]
    for hook in (container.get("lifecycle") or {}).values():
        found += ["lifecycle of host" for kind in ("httpGet", "tcpSocket") if (hook.get(kind) or {}).get("host")]
    return found


def profiles(context: dict[str, Any], where: str) -> list[str]:
    """What baseline asks of a pod's and of a container's context alike."""
    found = []
    linux = context.get("seLinuxOptions") or {}
    if linux.get("type", "") not in SELINUX or linux.get("user") or linux.get("role"):
        found.append(f"{where}: seLinuxOptions")
    if (context.get("appArmorProfile") or {"type": "RuntimeDefault"}).get("type") not in PROFILES:
        found.append(f"{where}: appArmorProfile")
    if (context.get("seccompProfile") or {"type": "RuntimeDefault"}).get("type") not in PROFILES:
        found.append(f"{where}: seccompProfile")
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        found.append(f"{where}: hostProcess")
    return found
