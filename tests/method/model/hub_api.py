"""The part of Hugging Face's protocol that pushing needs: repositories, branches, large files and commits.

What the real hub refuses is refused here: no token or an unknown one (401), a team that is not the user's (403),
repositories and branches that are not there (404), those that are (409), a commit that names content nobody uploaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

from tests.local_server import Answer, Request
from tests.method.model.hub import COMMIT, Hub

TOKEN, READER, TEAM = "hf_writes", "hf_reads", "team"
LARGE = 1000  # bytes, from which on a file is not part of the commit itself
LARGE_FILES = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/(batch)")
MODELS = re.compile(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/([^/?]+)")


class WritableHub(Hub):
    """Repositories lie at FOLDER/TEAM/NAME, other branches at FOLDER/TEAM/NAME@BRANCH. `fault` fails requests whose
    path contains `fails_at`."""

    def __init__(self, folder: Path, fault: str = "", fails_at: str = "") -> None:
        super().__init__(folder, fault)
        self.fails_at, self.private, self.large, self.commits = fails_at, set[str](), dict[str, bytes](), list[Any]()

    def answer(self, request: Request) -> Answer:
        path, token = request.path, request.headers.get("Authorization", "").removeprefix("Bearer ")
        if request.method in ("GET", "HEAD"):
            return self.read(request, token)
        self.asked.append(f"{request.method} {path}")
        if self.fault.isdigit() and self.fails_at in path:
            return refused(int(self.fault), "as asked for")
        if path.startswith("/large/"):  # a store of its own, whose addresses are signed
            return self.keep(path.rpartition("/")[2], request.body)
        if token not in (TOKEN, READER):
            return refused(401, "Invalid username or password.")
        if path == "/api/repos/create":
            return self.create(json.loads(request.body), token)
        if path == "/api/validate-yaml":
            return validated(json.loads(request.body)["content"])
        match = LARGE_FILES.fullmatch(path) or MODELS.fullmatch(path)
        assert match, f"the real hub has no {path}, or it is not told of here"
        repository, action = match[1], match[2]
        if not (self.folder / repository).is_dir():
            return refused(404, "Repository not found", "RepoNotFound")
        if repository.split("/")[0] != TEAM or token != TOKEN:
            return refused(403, "Forbidden: you must have write access")
        if action == "batch":
            return self.batch(json.loads(request.body)["objects"])
        branch = unquote(match[3])
        place = self.folder / (repository if branch == "main" else f"{repository}@{branch.replace('/', '+')}")
        if action == "branch":
            return self.branch(place)
        if not place.is_dir():
            return refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        if action == "preupload":
            return modes(json.loads(request.body)["files"])
        return self.commit(place, request.body.splitlines())

    def read(self, request: Request, token: str) -> Answer:
        """A private repository shows itself to its team alone."""
        repository = "/".join(request.path.removeprefix("/api/models/").strip("/").split("/")[:2])
        if repository in self.private and token not in (TOKEN, READER):
            return refused(401, "Repository not found", "RepoNotFound")
        if not request.path.startswith("/api/models/"):
            return super().answer(request)
        self.asked.append(f"{request.method} {request.path}")
        if not (self.folder / repository).is_dir():
            return refused(404, "Repository not found", "RepoNotFound")
        return Answer(200, {"id": repository, "private": repository in self.private, "sha": COMMIT, "siblings": []})

    def create(self, values: dict[str, Any], token: str) -> Answer:
        name, team = values["name"], values["organization"]
        repository = f"{team}/{name}"
        if token != TOKEN or team != TEAM:
            return refused(403, f'You don\'t have the rights to create a model under the namespace "{team}"')
        if not re.fullmatch(r"[\w.-]+", name) or "--" in name:
            return refused(400, "Invalid repository name")
        if (self.folder / repository).is_dir():
            return Answer(409, {"error": "You already created this model repo", "url": f"{self.url}/{repository}"})
        (self.folder / repository).mkdir(parents=True)
        if values.get("visibility") == "private" or values.get("private"):
            self.private.add(repository)
        return Answer(200, {"url": f"{self.url}/{repository}"})

    def branch(self, place: Path) -> Answer:
        if place.is_dir():
            return refused(409, "Reference already exists")
        place.mkdir()
        return Answer(200, {})

    def batch(self, objects: list[dict[str, Any]]) -> Answer:
        for one in objects:
            if one["oid"] not in self.large:
                one["actions"] = {"upload": {"href": f"{self.url}/large/{one['oid']}"}}
        return Answer(200, {"transfer": "basic", "objects": objects})

    def keep(self, oid: str, body: bytes) -> Answer:
        if hashlib.sha256(body).hexdigest() != oid:
            return refused(400, "other content than was announced")
        self.large[oid] = body
        return Answer(200, {})

    def commit(self, place: Path, lines: list[bytes]) -> Answer:
        contents = dict[str, bytes]()
        for entry in map(json.loads, lines):
            value = entry["value"]
            if entry["key"] == "file":
                contents[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.large:
                    return refused(400, f"{value['path']} was not uploaded")
                contents[value["path"]] = self.large[value["oid"]]
        for name, data in contents.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
        self.commits.append(sorted(contents))
        url = f"{self.url}/{place.relative_to(self.folder)}/commit/{COMMIT}"
        return Answer(200, {"success": True, "commitOid": COMMIT, "commitUrl": url})


def validated(content: str) -> Answer:
    try:
        front = yaml.safe_load(content.split("---\n")[1]) if content.startswith("---\n") else {}
        wrong = "" if re.fullmatch(r"[a-z0-9.-]+", front.get("license", "mit")) else '"license" must be one of ...'
    except (yaml.YAMLError, AttributeError):
        wrong = "is no YAML"
    return Answer(400 if wrong else 200, {"errors": [{"message": wrong}] if wrong else [], "warnings": []})


def modes(files: list[dict[str, Any]]) -> Answer:
    upload = {file["path"]: "lfs" if file["size"] >= LARGE else "regular" for file in files}
    return Answer(200, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in upload.items()]})


def refused(status: int, error: str, code: str = "") -> Answer:
    return Answer(status, {"error": error}, {"X-Error-Code": code} if code else None)


def writable(folder: Path, fault: str = "", fails_at: str = "") -> AbstractContextManager[WritableHub]:
    return closing(WritableHub(folder, fault, fails_at))
