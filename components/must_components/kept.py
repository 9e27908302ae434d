"""The URL at which Kubeflow's server offers an artifact for download."""

from pathlib import Path
from urllib.parse import quote

NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")  # in a pod


def download_of(uri: str) -> str:
    """The URL relative to Kubeflow's page; '' for a store that it does not serve.

    A multi-user installation needs the namespace; a single-user one ignores it.
    """
    store, _, path = uri.partition("://")
    if store not in ("minio", "s3"):
        return ""
    namespace = f"?namespace={NAMESPACE.read_text().strip()}" if NAMESPACE.is_file() else ""
    return f"artifacts/{store}/{quote(path)}{namespace}"
