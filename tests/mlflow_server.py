"""A real MLflow server, of its own wheel: sqlite and artifacts in a folder, on a free port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient


class MlflowServer:
    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)
        self.log = (folder / "server.log").open("wb")
        self.command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        self.command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"]
        self.command += ["--artifacts-destination", str(folder / "artifacts")]
        self.folder = folder

    def start(self) -> MlflowServer:
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # another process, for what is not used here
        self.process = subprocess.Popen(
            self.command, cwd=self.folder, env=environment, stdout=self.log, stderr=self.log, start_new_session=True
        )
        deadline = time.monotonic() + 300
        while True:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                if answer.status == 200:
                    return self
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "server.log").read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # its workers too
        self.process.wait()

    @property
    def client(self) -> MlflowClient:
        from mlflow import MlflowClient  # takes seconds

        return MlflowClient(self.uri)
