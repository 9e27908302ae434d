"""A Kubeflow Model Registry in memory, as strict as the real one where `must promote` meets it.

Its facts are those of kubeflow/model-registry at bd07139 (api/openapi/model-registry.yaml, and what the Go server does;
newer servers and clients speak v1, which is the same where it is used here): unknown fields are 400, missing names 422,
names that are there 409, what is not there 404; a name is unique in its parent; PATCH keeps what it does not name and
replaces all properties where it names them; lists come in pages.
"""

import base64
import json
import re
import threading
import time
import urllib.parse

from tests.local_server import Answer, LocalServer

V1, V1ALPHA3 = "/api/model_registry/v1/", "/api/model_registry/v1alpha3/"
BASE = {"customProperties", "description", "externalId"}
MODEL_FIELDS = {
    "owner", "state", "readme", "maturity", "language", "tasks", "provider", "logo", "license", "licenseLink",
    "libraryName",
}  # fmt: skip
ARTIFACT_FIELDS = {
    "artifactType", "uri", "state", "modelFormatName", "modelFormatVersion", "storageKey", "storagePath",
    "serviceAccountName", "modelSourceKind", "modelSourceClass", "modelSourceGroup", "modelSourceId", "modelSourceName",
}  # fmt: skip
CHANGE = {
    "registered_models": BASE | MODEL_FIELDS,
    "model_versions": BASE | {"state", "author"},
    "artifacts": BASE | ARTIFACT_FIELDS,
}
CREATE = {
    "registered_models": CHANGE["registered_models"] | {"name"},
    "model_versions": CHANGE["model_versions"] | {"name", "registeredModelId"},
    "artifacts": CHANGE["artifacts"] | {"name", "id"},
}
STATES = {
    "registered_models": {"LIVE", "ARCHIVED"},
    "model_versions": {"LIVE", "ARCHIVED"},
    "artifacts": {"UNKNOWN", "PENDING", "LIVE", "MARKED_FOR_DELETION", "DELETED", "ABANDONED", "REFERENCE"},
}
VALUES = {  # of a property: its type's own field, and what it holds
    "MetadataStringValue": ("string_value", str),
    "MetadataDoubleValue": ("double_value", float),
    "MetadataIntValue": ("int_value", str),
    "MetadataBoolValue": ("bool_value", bool),
}
ID = re.compile(r"[1-9][0-9]{0,8}")


class Refused(Exception):  # noqa: N818
    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def parsed(text):
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None


class ModelRegistryServer:
    def __init__(self, token="", root=V1):
        self.token, self.page_limit, self.root = token, 0, root
        self.rows = {"registered_models": [], "model_versions": [], "artifacts": []}
        self.requests, self.faults = [], []  # faults: (method, path's end, what happens), each once
        self.lock = threading.Lock()
        self.server = LocalServer(self.handle)
        self.uri, self.stop = self.server.url, self.server.close

    def handle(self, request):
        path, _, query = request.path.partition("?")
        text = request.body.decode()
        with self.lock:
            self.requests.append((request.method, path.removeprefix(self.root), parsed(text)))
            fault = next((f for f in self.faults if f[0] == request.method and path.endswith(f[1])), None)
            if fault:
                self.faults.remove(fault)
            if fault and fault[2] != "lost":
                code, body = fault[2], {"code": str(fault[2]), "message": "in trouble"}
            else:
                code, body = self.respond(request, path, dict(urllib.parse.parse_qsl(query)), text)
        headers = {"Location": "/login"} if 300 <= code < 400 else {}
        return Answer(0 if fault and fault[2] == "lost" else code, body, headers)

    def respond(self, request, path, query, text):
        try:
            if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
                raise Refused(401, "Unauthorized")
            if not path.startswith(self.root):
                raise Refused(404, "page not found")
            if "\\u0000" in text:
                raise Refused(400, "Request body contains null bytes which are not allowed")
            if text and request.headers.get("Content-Type") != "application/json":
                raise Refused(415, "Unsupported Media Type")
            if text and parsed(text) is None:
                raise Refused(400, "unexpected EOF")
            parts = path.removeprefix(self.root).split("/")
            return getattr(self, request.method.lower())(parts, query, json.loads(text) if text else None)
        except Refused as error:
            return error.code, {"code": str(error.code), "message": str(error)}

    def get(self, parts, query, _):
        match parts:
            case ["registered_models"]:
                return 200, self.page(self.rows["registered_models"], query)
            case ["registered_model"]:
                return 200, self.one("registered_models", query.get("name"))
            case ["model_version" | "model_artifact" as one]:
                if not (query.get("name") and query.get("parentResourceId")):
                    raise Refused(400, "supply either (name and parentResourceId), or externalId")
                kind = {"model_version": "model_versions", "model_artifact": "artifacts"}[one]
                return 200, self.one(kind, query["name"], query["parentResourceId"])
            case ["registered_models", number, "versions"]:
                parent = self.row("registered_models", number)["id"]
                return 200, self.page([v for v in self.rows["model_versions"] if v["_parent"] == parent], query)
            case ["model_versions", number, "artifacts"]:
                parent = self.row("model_versions", number)["id"]
                return 200, self.page([one for one in self.rows["artifacts"] if one["_parent"] == parent], query)
            case ["registered_models" | "model_versions" as kind, number]:
                return 200, shown(self.row(kind, number))
        raise Refused(404, "page not found")

    def post(self, parts, _, body):
        match parts:
            case ["registered_models"]:
                return 201, self.add("registered_models", body, "")
            case ["model_versions"]:
                self.check("model_versions", body, CREATE)
                if not body.get("registeredModelId"):
                    raise Refused(422, "required field 'registeredModelId' is zero value.")
                # It does not look for the model.
                return 201, self.add("model_versions", body, body["registeredModelId"])
            case ["registered_models", number, "versions"]:
                return 201, self.add("model_versions", body, self.row("registered_models", number)["id"])
            case ["model_versions", number, "artifacts"]:
                if (body or {}).get("artifactType") != "model-artifact":
                    raise Refused(400, "artifactType: only model-artifact is known here")
                return 201, self.add("artifacts", body, self.row("model_versions", number)["id"])
        raise Refused(404, "page not found")

    def patch(self, parts, _, body):
        match parts:
            case ["registered_models" | "model_versions" as kind, number]:
                row = self.row(kind, number)
                self.check(kind, body, CHANGE)
                row.update(body, lastUpdateTimeSinceEpoch=now())
                return 200, shown(row)
            case ["model_artifacts", number]:
                row = self.row("artifacts", number)
                self.check("artifacts", body, CHANGE)
                row.update(body, lastUpdateTimeSinceEpoch=now())
                return 200, shown(row)
        raise Refused(404, "page not found")

    def add(self, kind, body, parent):
        self.check(kind, body, CREATE)
        if not body.get("name"):
            raise Refused(422, "required field 'name' is zero value.")
        if any(row["_parent"] == parent and row["name"] == body["name"] for row in self.rows[kind]):
            raise Refused(409, f"{kind} with name {body['name']} already exists")
        row = {"id": str(1 + sum(map(len, self.rows.values()))), "state": "LIVE", "customProperties": {}, **body}
        row |= {"createTimeSinceEpoch": now(), "lastUpdateTimeSinceEpoch": now(), "_parent": parent}
        self.rows[kind].append(row)
        return shown(row)

    def check(self, kind, body, known):
        if not isinstance(body, dict):
            raise Refused(400, "no JSON object")
        if unknown := body.keys() - known[kind]:
            raise Refused(400, f'json: unknown field "{min(unknown)}"')
        if body.get("state", "LIVE") not in STATES[kind]:
            raise Refused(400, f"{body['state']} is not a valid state")
        for name, value in (body.get("customProperties") or {}).items():
            field, type_ = VALUES.get(value.get("metadataType"), ("", object))
            number = type_ is float and type(value.get(field)) is int
            if value.keys() != {"metadataType", field} or not (isinstance(value[field], type_) or number):
                raise Refused(400, f"customProperties.{name}: no metadata value")

    def row(self, kind, number):
        if not ID.fullmatch(number):
            raise Refused(400, f"invalid id {number}")
        found = next((row for row in self.rows[kind] if row["id"] == number), None)
        if found is None:
            raise Refused(404, f"no {kind} found for id {number}")
        return found

    def one(self, kind, name, parent=""):
        if not name:
            raise Refused(400, "invalid parameters call, supply either name or externalId")
        found = [row for row in self.rows[kind] if row["name"] == name and row["_parent"] == parent]
        if not found:
            raise Refused(404, f"no {kind} found for name={name}")
        return shown(found[0])

    def after(self, rows, token):
        """The place behind the row that a page's token names."""
        try:
            last = base64.b64decode(token, validate=True).decode().partition(":")[0]
        except ValueError:
            raise Refused(400, "invalid nextPageToken") from None
        ids = [row["id"] for row in rows]
        if last and last not in ids:
            raise Refused(400, "invalid nextPageToken")
        return 1 + ids.index(last) if last else 0

    def page(self, rows, query):
        size = min(int(query.get("pageSize", 100)), self.page_limit or 10**9)
        rest = rows[self.after(rows, query.get("nextPageToken", "")) :]
        items = [shown(row) for row in rest[:size]]
        more = base64.b64encode("{0}:{0}".format(items[-1]["id"]).encode()).decode() if size < len(rest) else ""
        return {"items": items, "nextPageToken": more, "pageSize": size, "size": len(items)}


def shown(row):
    return {name: value for name, value in row.items() if not name.startswith("_")}


def now():
    return str(int(time.time() * 1000))
