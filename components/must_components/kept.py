"""Where Kubeflow's own server hands an artifact out: an address beside its page."""

from pathlib import Path
from urllib.parse import quote

NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")  # in a pod


def download_of(uri: str) -> str:
    """Relative to Kubeflow's page; '' for a place that it does not serve, or of another orchestrator.

    With several users it wants the namespace; with one it drops it.
    """
    store, _, rest = uri.partition("://")
    if store not in ("minio", "s3"):
        return ""
    namespace = f"?namespace={NAMESPACE.read_text().strip()}" if NAMESPACE.is_file() else ""
    return f"artifacts/{store}/{quote(rest)}{namespace}"
