"""Whether an MLflow server answers and lets us in, asked without its package, which few images have."""

from __future__ import annotations

import base64
import os
import urllib.error
import urllib.request

from must.base.storage import TransientError, is_transient
from must.base.text import printable

SEARCH = "/api/2.0/mlflow/registered-models/search?max_results=1"
TIMEOUT = 30  # seconds


def ask_server() -> None:
    """Does nothing where MLFLOW_TRACKING_URI is no http(s) address: a folder, or a database.

    Raises:
        ValueError: it refuses, or is no MLflow; TransientError if it does not answer.
    """
    url = os.environ.get("MLFLOW_REGISTRY_URI") or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not url.startswith(("http://", "https://")):
        return
    request = urllib.request.Request(url.rstrip("/") + SEARCH, headers=credentials())
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            kind = answer.headers.get_content_type()
    except urllib.error.HTTPError as error:
        with error:
            line = f"register mlflow: {url} answers {error.code}"
        raise (TransientError if is_transient(error.code) else ValueError)(line) from None
    except OSError as error:
        raise TransientError(f"register mlflow: {url} does not answer ({printable(error, 200)})") from None
    if kind != "application/json":
        raise ValueError(f"register mlflow: {url} answers something else than MLflow's JSON: a login page?")


def credentials() -> dict[str, str]:
    """As MLflow's own client takes them from the environment."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if user is None or password is None:
        return {}
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
