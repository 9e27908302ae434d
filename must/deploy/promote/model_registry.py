"""The few calls of the Kubeflow Model Registry's REST API (v1, or v1alpha3 of older servers) that a promotion needs.

Not its Python client (model-registry 0.3.18): that drives aiohttp from synchronous code by patching the running event
loop, brings pydantic with it, has no call that changes one property of a version and keeps the others, and
each of its versions speaks one version of the API. Seven requests on the standard library need no package in the image
that promotes.
"""

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

from must.base import storage
from must.base.errors import TransientError, UserError
from must.base.parameters import require
from must.base.text import printable

URL = "MODEL_REGISTRY_URL"
TOKEN, TOKEN_FILE = "MODEL_REGISTRY_TOKEN", "KF_PIPELINES_SA_TOKEN_PATH"  # the second as the registry's own client
ROOTS = ("/api/model_registry/v1", "/api/model_registry/v1alpha3")  # the newest first; what is used here is the same
TRIES, TIMEOUT = 5, 30  # of a request, and seconds of each
PAGE = 100  # entries a request


class RefusedError(UserError):
    """The server's answer: it will not. `status` is HTTP's."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A registry does not redirect; a login page does, and it must not get the token."""

    def redirect_request(self, *_: Any) -> None:
        return None


def address(flag: str) -> str:
    """MODEL_REGISTRY_URL. Raises ValueError: it is not set, or is none; says so of `flag`."""
    url = os.environ.get(URL, "").rstrip("/")
    example = "such as http://model-registry-service.kubeflow.svc:8080"
    require(bool(url), f"{flag}: set {URL} to the Kubeflow Model Registry's address, {example}")
    wrong = f"{flag}: {URL} is no http(s) address, {example}"
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        raise UserError(wrong) from None
    require(parts.scheme in ("http", "https") and bool(parts.netloc), wrong)
    require("@" not in parts.netloc, f"{flag}: {URL} holds a name or password; give a token in {TOKEN}")
    return url


def token() -> str:
    """A bearer token, or ''. Raises ValueError: the file that should hold it cannot be read."""
    if value := os.environ.get(TOKEN, ""):
        return value.strip()
    if not (file := os.environ.get(TOKEN_FILE, "")):
        return ""
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        raise UserError(f"{TOKEN_FILE} {file}: no token to be read there") from None


class Api:
    """One server. A request that does not come through is tried again: creating is safe, for a name is there once."""

    def __init__(self, flag: str) -> None:
        """Asks the server which version of the API it speaks.

        Raises:
            ValueError: it is no such server, or refuses; TransientError if it does not answer.
        """
        self.url, self.root = address(flag), ""
        self.opener = urllib.request.build_opener(NoRedirect)
        for self.root in ROOTS:
            if self.find("registered_models", pageSize="1") is not None:
                return
        raise UserError(f"{flag}: {self.url} is no Kubeflow Model Registry: it has neither {' nor '.join(ROOTS)}")

    def find(self, path: str, **query: str) -> dict[str, Any] | None:
        """The one that matches, or None."""
        try:
            return self.send("GET", f"{path}?{urllib.parse.urlencode(query)}")
        except RefusedError as error:
            if error.status != 404:
                raise
            return None

    def pages(self, path: str) -> Iterator[dict[str, Any]]:
        page = ""
        while True:
            query = {"pageSize": str(PAGE), **({"nextPageToken": page} if page else {})}
            found = self.send("GET", f"{path}?{urllib.parse.urlencode(query)}")
            yield from found["items"]
            page = found["nextPageToken"]
            if not page:
                return

    def send(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer's JSON.

        Raises:
            RefusedError: the server's no.
            TransientError: no answer, or the server's own trouble.
        """
        return storage.repeat(self.url, lambda: self.once(method, path, body), tries=TRIES)

    def once(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if body is not None else {})
        if value := token():
            headers["Authorization"] = f"Bearer {value}"
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        request = urllib.request.Request(f"{self.url}{self.root}/{path}", data, headers, method=method)
        try:
            with self.opener.open(request, timeout=TIMEOUT) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                line = f"{self.url} answers {error.code} to {method} {path.partition('?')[0]}: {said(error)}"
            if storage.is_transient(error.code):
                raise TransientError(line) from None
            raise RefusedError(line, error.code) from None
        except (OSError, HTTPException) as error:
            raise TransientError(f"{self.url} does not answer ({printable(error, 200)})") from None
        line = f"{self.url} answers something else than the registry's JSON: a login page?"
        return storage.parse_object(text, dict, RefusedError(line, 200))


def said(error: urllib.error.HTTPError) -> str:
    """The server's message on one line, or what its code means."""
    try:
        text = json.loads(error.read(100_000))["message"]
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        text = "it redirects: a login page?" if 300 <= error.code < 400 else error.reason
    return printable(" ".join(str(text).split()), 300)
