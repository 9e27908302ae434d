"""Records promoted versions in a Kubeflow Model Registry: their metrics and the URI of their ONNX model.

MUST's registry has the files; this one only has their URIs. It has no aliases, so the champion is recorded as a
property of the registered model, `must.champion`, and as a label of the version, which the Kubeflow page shows.
"""

import json
import math
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

from must.base import storage
from must.base.errors import TransientError, UserError
from must.base.files import CARD_FILE, LONGEST_CARD, ONNX_FILE
from must.base.lock import RUN_ID
from must.base.parameters import require
from must.base.text import printable

REGISTRY_URL = "MODEL_REGISTRY_URL"
REGISTRY_TOKEN = "MODEL_REGISTRY_TOKEN"
TOKEN_FILE = "KF_PIPELINES_SA_TOKEN_PATH"  # also a variable of the registry's own client
ROOTS = ("/api/model_registry/v1", "/api/model_registry/v1alpha3")  # the newest first; both have the requests used here
TRIES, TIMEOUT = 5, 30  # of a request, and seconds of each
PAGE_SIZE = 100  # entries per request


class RefusedError(UserError):
    """The server refuses the request. `status`: of the HTTP response."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Only login pages redirect, not a registry; they must not get the token."""

    def redirect_request(self, *_: Any) -> None:
        return None


def address(flag: str) -> str:
    """MODEL_REGISTRY_URL. Raises ValueError: it is not set, or is no URL; the message begins with `flag`."""
    url = os.environ.get(REGISTRY_URL, "").rstrip("/")
    example = "such as http://model-registry-service.kubeflow.svc:8080"
    require(bool(url), f"{flag}: set {REGISTRY_URL} to the Kubeflow Model Registry's address, {example}")
    wrong = f"{flag}: {REGISTRY_URL} is no http(s) address, {example}"
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        raise UserError(wrong) from None
    require(parts.scheme in ("http", "https") and bool(parts.netloc), wrong)
    secret = f"{flag}: {REGISTRY_URL} holds a name or password; give a token in {REGISTRY_TOKEN}"
    require("@" not in parts.netloc, secret)
    return url


def token() -> str:
    """A bearer token, or ''. Raises ValueError: the token file cannot be read."""
    if value := os.environ.get(REGISTRY_TOKEN, ""):
        return value.strip()
    if not (file := os.environ.get(TOKEN_FILE, "")):
        return ""
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        raise UserError(f"{TOKEN_FILE} {file}: no token to be read there") from None


class Api:
    """One server. A failed request is retried; this is safe also for creating, as names are unique."""

    def __init__(self, flag: str) -> None:
        """Finds out which version of the API the server has.
        Raises ValueError: it is no such server, or refuses; TransientError if it does not respond."""
        self.url, self.root = address(flag), ""
        self.opener = urllib.request.build_opener(NoRedirect)
        for self.root in ROOTS:
            if self.find("registered_models", pageSize="1") is not None:
                return
        raise UserError(f"{flag}: {self.url} is no Kubeflow Model Registry: it has neither {' nor '.join(ROOTS)}")

    def find(self, path: str, **query: str) -> dict[str, Any] | None:
        """The entry that matches, or None."""
        try:
            return self.send("GET", f"{path}?{urllib.parse.urlencode(query)}")
        except RefusedError as error:
            if error.status != 404:
                raise
            return None

    def pages(self, path: str) -> Iterator[dict[str, Any]]:
        page = ""
        while True:
            query = {"pageSize": str(PAGE_SIZE), **({"nextPageToken": page} if page else {})}
            response = self.send("GET", f"{path}?{urllib.parse.urlencode(query)}")
            yield from response["items"]
            page = response["nextPageToken"]
            if not page:
                return

    def send(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The response's JSON.
        Raises RefusedError: the server refuses the request; TransientError: no response, or a server error."""
        return storage.repeat(self.url, lambda: self.send_once(method, path, body), tries=TRIES)

    def send_once(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if body is not None else {})
        if value := token():
            headers["Authorization"] = f"Bearer {value}"
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        request = urllib.request.Request(f"{self.url}{self.root}/{path}", data, headers, method=method)
        try:
            with self.opener.open(request, timeout=TIMEOUT) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            with error:
                line = f"{self.url} answers {error.code} to {method} {path.partition('?')[0]}: {message_of(error)}"
            if storage.is_transient(error.code):
                raise TransientError(line) from None
            raise RefusedError(line, error.code) from None
        except (OSError, HTTPException) as error:
            raise TransientError(f"{self.url} does not answer ({printable(error, 200)})") from None
        line = f"{self.url} returns no JSON of the registry; check the address and the login"
        return storage.parse_object(text, dict, RefusedError(line, 200))


def message_of(error: urllib.error.HTTPError) -> str:
    """The server's message on one line, or the meaning of the status code."""
    try:
        text = json.loads(error.read(100_000))["message"]
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        text = "it redirects: a login page?" if 300 <= error.code < 400 else error.reason
    return printable(" ".join(str(text).split()), 300)


FLAG = "--register kubeflow"
CHAMPION_LABEL = "champion"  # of a version
CHAMPION, URI = "must.champion", "must.uri"  # properties: of the model, the champion's name; of a version, its URI
REGISTERED_MODELS, VERSIONS = "registered_models", "model_versions"


class KubeflowRegistry:
    """The versions of one model there. Its methods raise ValueError; TransientError where a retry may succeed."""

    title = "Kubeflow Model Registry"

    def __init__(self, name: str) -> None:
        self.name = name
        with kubeflow_errors("nothing was promoted"):
            self.api = Api(FLAG)  # fails at once if the server does not respond
            state = (self.model() or {}).get("state")
        require(
            state != "ARCHIVED",
            f"{FLAG}: {name} is archived there; restore it, or give another --register-name; nothing was promoted",
        )

    def put(self, version: str, onnx: str, metrics: dict[str, float], tags: dict[str, str]) -> str:
        """The export's card becomes the description, `metrics` and `tags` the version's properties.
        Raises ValueError: another version of that name is there."""
        with kubeflow_errors(f"{version} is the champion of the registry, but not in Kubeflow's; run the same again"):
            uri = absolute(storage.join(tags[URI], "onnx"))
            require(storage.exists(storage.join(uri, ONNX_FILE)), f"{uri}: no {ONNX_FILE}, it was promoted without")
            model = self.model() or self.create(REGISTERED_MODELS, {"name": self.name}) or self.model()
            assert model  # found, created, or created by another program
            entry = self.version(model, version)
            if not entry:
                entry = self.create(VERSIONS, self.version_body(model, version, onnx, metrics, tags))
                entry = entry or self.version(model, version)
            assert entry
            self.add_artifact(entry, uri)
            self.set_champion(model["id"], entry)
        return version

    def move(self, version: str) -> str | None:
        with kubeflow_errors(f"{version} is the champion of the registry again; in Kubeflow's it was not changed"):
            model = self.model()
            entry = self.version(model, version) if model else None
            if model and entry:
                self.set_champion(model["id"], entry)
        return version if entry else None

    def model(self) -> dict[str, Any] | None:
        return self.api.find("registered_model", name=self.name)

    def version(self, model: dict[str, Any], version: str) -> dict[str, Any] | None:
        return self.api.find("model_version", name=version, parentResourceId=model["id"])

    def create(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """None: it exists already, for example because the response to an earlier try got lost."""
        try:
            return self.api.send("POST", path, body)
        except RefusedError as error:
            if error.status != 409:
                raise
            return None

    def version_body(
        self, model: dict[str, Any], version: str, onnx: str, metrics: dict[str, float], tags: dict[str, str]
    ) -> dict[str, Any]:
        card = storage.join(onnx, CARD_FILE)
        description = storage.read_bytes(card).decode("utf-8", "replace")[:LONGEST_CARD] if storage.exists(card) else ""
        numbers = {
            name: {"metadataType": "MetadataDoubleValue", "double_value": float(value)}
            for name, value in metrics.items()
            if math.isfinite(value)
        }
        texts = {name: text_value(value) for name, value in tags.items() if value}  # an empty text would be a label
        texts[URI] = text_value(absolute(tags[URI]))
        return {"name": version, "registeredModelId": model["id"], "state": "LIVE", "author": "must",
                "description": description, "customProperties": numbers | texts}  # fmt: skip

    def add_artifact(self, version: dict[str, Any], uri: str) -> None:
        """Creates the version's only artifact (KServe's `model-registry://` would use the newest of several). It has
        the name of the registered model, by which the registry's own client finds it.
        Raises ValueError: the version has an artifact with another URI."""
        query = {"name": self.name, "parentResourceId": version["id"]}
        run = os.environ.get(RUN_ID, "")
        origin = {"modelSourceKind": "kfp", "modelSourceClass": "pipelinerun", "modelSourceId": run} if run else {}
        body = {"artifactType": "model-artifact", "name": self.name, "uri": uri, "state": "LIVE",
                "modelFormatName": "onnx", "modelFormatVersion": "1", **origin}  # fmt: skip
        artifact = self.api.find("model_artifact", **query)
        artifact = artifact or self.create(f"{VERSIONS}/{version['id']}/artifacts", body)
        artifact = artifact or self.api.find("model_artifact", **query)
        current = artifact and artifact.get("uri")
        require(
            current == uri,
            f"version {version['name']} of {self.name} is there already and is another model ({current}); "
            "give another --version or --register-name",
        )

    def set_champion(self, model: str, champion: dict[str, Any]) -> None:
        """Writes the champion to the model, then moves the label."""
        self.update(f"{REGISTERED_MODELS}/{model}", {CHAMPION: text_value(champion["name"])})
        for version in list(self.api.pages(f"{REGISTERED_MODELS}/{model}/versions")):
            label = (version.get("customProperties") or {}).get(CHAMPION_LABEL, {})
            if version["id"] != champion["id"] and label.get("string_value") == "":  # the page shows it as a label
                self.update(f"{VERSIONS}/{version['id']}", {}, without=CHAMPION_LABEL)
        self.update(f"{VERSIONS}/{champion['id']}", {CHAMPION_LABEL: text_value("")})

    def update(self, path: str, properties: dict[str, Any], without: str = "") -> None:
        """Reads the properties first: a request replaces all of them, also those of other programs."""
        old = self.api.send("GET", path).get("customProperties") or {}
        new = {name: value for name, value in old.items() if name != without} | properties
        if new != old:
            self.api.send("PATCH", path, {"customProperties": new})


def text_value(value: str) -> dict[str, Any]:
    return {"metadataType": "MetadataStringValue", "string_value": value.replace("\0", "")}


def absolute(uri: str) -> str:
    """A local folder as an absolute file:// URI."""
    return uri if storage.is_remote(uri) else f"file://{storage.local(uri).absolute()}"


@contextmanager
def kubeflow_errors(state: str) -> Iterator[None]:
    """Converts errors to one line that ends with `state`: what has been done so far."""
    try:
        yield
    except TransientError as error:
        raise TransientError(f"{FLAG}: {error}; {state}") from None
    except ValueError as error:
        line = str(error).removeprefix(f"{FLAG}: ")
        raise UserError(f"{FLAG}: {line}; {state}") from None
