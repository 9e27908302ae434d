"""The part of Hugging Face's protocol that pushing needs: repositories, branches, large files and commits.

What the real hub refuses is refused here: no token or an unknown one (401), a team that is not the user's (403),
repositories and branches that are not there (404), those that are (409), a commit that names content nobody uploaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

from tests.method.model.hub import COMMIT, Handler, Hub, serve

TOKEN, READER, TEAM = "hf_writes", "hf_reads", "team"
LARGE = 1000  # bytes, from which on a file is not part of the commit itself


class WritableHub(Hub):
    """Repositories lie at FOLDER/TEAM/NAME, other branches at FOLDER/TEAM/NAME@BRANCH. `fault` fails requests whose
    path contains `fails_at`."""

    def __init__(self, folder: Path, fault: str = "", fails_at: str = "") -> None:
        super().__init__(folder, fault, WritingHandler)
        self.fails_at, self.private, self.large, self.commits = fails_at, set[str](), dict[str, bytes](), list[Any]()


class WritingHandler(Handler):
    server: WritableHub

    def do_POST(self) -> None:  # noqa: N802
        self.write()

    def do_PUT(self) -> None:  # noqa: N802
        self.write()

    def answer(self) -> None:
        """Reading: a private repository shows itself to its team alone."""
        repository = "/".join(self.path.removeprefix("/api/models/").strip("/").split("/")[:2])
        if repository in self.server.private and self.token not in (TOKEN, READER):
            return self.say(401, "Repository not found", "RepoNotFound")
        if not self.path.startswith("/api/models/"):
            return super().answer()
        self.server.asked.append(f"{self.command} {self.path}")
        if not (self.server.folder / repository).is_dir():
            return self.say(404, "Repository not found", "RepoNotFound")
        self.give({"id": repository, "private": repository in self.server.private, "sha": COMMIT, "siblings": []})

    def write(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.fault.isdigit() and self.server.fails_at in self.path:
            return self.say(int(self.server.fault), "as asked for")
        if self.path.startswith("/large/"):  # a store of its own, whose addresses are signed
            return self.keep(body)
        if self.token not in (TOKEN, READER):
            return self.say(401, "Invalid username or password.")
        if self.path == "/api/repos/create":
            return self.create(json.loads(body))
        if self.path == "/api/validate-yaml":
            return self.validate(json.loads(body)["content"])
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.path):
            return self.within(match[1], lambda: self.batch(json.loads(body)["objects"]))
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/([^/?]+)", self.path)
        assert match, f"the real hub has no {self.path}, or it is not told of here"
        repository, action, branch = match[1], match[2], unquote(match[3])
        if action == "branch":
            return self.within(repository, lambda: self.branch(repository, branch))
        place = self.place(repository, branch)
        if (self.server.folder / repository).is_dir() and not place.is_dir():
            return self.say(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        if action == "preupload":
            return self.within(repository, lambda: self.modes(json.loads(body)["files"]))
        return self.within(repository, lambda: self.commit(place, body.splitlines()))

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def place(self, repository: str, branch: str) -> Path:
        return self.server.folder / (repository if branch == "main" else f"{repository}@{branch.replace('/', '+')}")

    def within(self, repository: str, act: Any) -> None:
        if not (self.server.folder / repository).is_dir():
            return self.say(404, "Repository not found", "RepoNotFound")
        if repository.split("/")[0] != TEAM or self.token != TOKEN:
            return self.say(403, "Forbidden: you must have write access")
        act()

    def create(self, values: dict[str, Any]) -> None:
        name, team = values["name"], values["organization"]
        if self.token != TOKEN or team != TEAM:
            return self.say(403, f'You don\'t have the rights to create a model under the namespace "{team}"')
        if not re.fullmatch(r"[\w.-]+", name) or "--" in name:
            return self.say(400, "Invalid repository name")
        repository = f"{team}/{name}"
        if (self.server.folder / repository).is_dir():
            return self.give(
                {"error": "You already created this model repo", "url": f"{self.server.url}/{repository}"}, 409
            )
        (self.server.folder / repository).mkdir(parents=True)
        if values.get("visibility") == "private" or values.get("private"):
            self.server.private.add(repository)
        self.give({"url": f"{self.server.url}/{repository}"})

    def validate(self, content: str) -> None:
        try:
            front = yaml.safe_load(content.split("---\n")[1]) if content.startswith("---\n") else {}
            wrong = "" if re.fullmatch(r"[a-z0-9.-]+", front.get("license", "mit")) else '"license" must be one of ...'
        except (yaml.YAMLError, AttributeError):
            wrong = "is no YAML"
        self.give({"errors": [{"message": wrong}] if wrong else [], "warnings": []}, 400 if wrong else 200)

    def modes(self, files: list[dict[str, Any]]) -> None:
        def mode(file: dict[str, Any]) -> str:
            return "lfs" if file["size"] >= LARGE else "regular"

        self.give({"files": [{"path": f["path"], "uploadMode": mode(f), "shouldIgnore": False} for f in files]})

    def batch(self, objects: list[dict[str, Any]]) -> None:
        for one in objects:
            if one["oid"] not in self.server.large:
                url = f"{self.server.url}/large/{one['oid']}"
                one["actions"] = {"upload": {"href": url}}
        self.give({"transfer": "basic", "objects": objects})

    def keep(self, body: bytes) -> None:
        oid = self.path.rpartition("/")[2]
        if hashlib.sha256(body).hexdigest() != oid:
            return self.say(400, "other content than was announced")
        self.server.large[oid] = body
        self.give({})

    def branch(self, repository: str, branch: str) -> None:
        place = self.place(repository, branch)
        if place.is_dir():
            return self.say(409, "Reference already exists")
        place.mkdir()
        self.give({})

    def commit(self, place: Path, lines: list[bytes]) -> None:
        contents = dict[str, bytes]()
        for line in lines:
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                contents[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.server.large:
                    return self.say(400, f"{value['path']} was not uploaded")
                contents[value["path"]] = self.server.large[value["oid"]]
        for name, data in contents.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
        self.server.commits.append(sorted(contents))
        repository = str(place.relative_to(self.server.folder))
        self.give(
            {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.server.url}/{repository}/commit/{COMMIT}"}
        )

    def give(self, values: Any, status: int = 200) -> None:
        self.reply(status, json.dumps(values).encode(), {"Content-Type": "application/json"})

    def say(self, status: int, error: str, code: str = "") -> None:
        headers = {"Content-Type": "application/json", **({"X-Error-Code": code} if code else {})}
        self.reply(status, json.dumps({"error": error}).encode(), headers)


@contextmanager
def writable(folder: Path, fault: str = "", fails_at: str = "") -> Iterator[WritableHub]:
    with serve(WritableHub(folder, fault, fails_at)) as hub:
        assert isinstance(hub, WritableHub)
        yield hub
