"""A hub on this machine: the part of Hugging Face's protocol that fetching a file needs, and its ways to fail."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from pathlib import Path

from tests.local_server import Answer, LocalServer, Request

COMMIT = "1" * 40


class Hub(LocalServer):
    """Serves TEAM/NAME/FILE below a folder. `asked` holds the requests; `fault` is a way to fail, see `answer`."""

    def __init__(self, folder: Path, fault: str = "") -> None:
        self.folder, self.fault, self.asked, self.ended = folder, fault, list[str](), threading.Event()
        super().__init__(self.last_answer)

    def last_answer(self, request: Request) -> Answer:
        """The connection ends with it: none is left when the hub is gone."""
        answer = self.answer(request)
        return replace(answer, headers={**(answer.headers or {}), "Connection": "close"})

    def answer(self, request: Request) -> Answer:
        self.asked.append(f"{request.method} {request.path}")
        if self.fault == "hangs":
            self.ended.wait(120)
        if self.fault.isdigit():
            return Answer(int(self.fault))
        repository, _, name = request.path.partition("?")[0].partition("/resolve/main/")
        file = self.folder / repository.strip("/") / name
        if not file.is_file():
            kind = "EntryNotFound" if file.parent.is_dir() else "RepoNotFound"
            return Answer(404, headers={"X-Error-Code": kind, "X-Repo-Commit": COMMIT})
        data = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if self.fault == "no commit":
            del headers["X-Repo-Commit"]
        if self.fault == "cuts" and request.method == "GET":
            data = data[: len(data) // 2]
        return Answer(200, data, headers)

    def close(self) -> None:
        self.ended.set()
        super().close()
