"""Progress in Kubeflow Trainer's `status.trainerStatus`, which `kubectl get trainjob -o yaml` and its SDK show.

Trainer 2.3 sets three variables in a TrainJob's pods if its feature gate TrainJobStatus is on. It is not in --trackers:
without the variables nothing is sent, and a failed request only logs a warning.
"""

import json
import logging
import os
import ssl
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from must.method.train.trackers.base import reason

logger = logging.getLogger(__name__)

URL, CERTIFICATES, TOKEN = (f"KUBEFLOW_TRAINER_SERVER_{name}" for name in ("URL", "CA_CERT", "TOKEN"))  # two are files
EVERY = 10.0  # least seconds between two reports
STATUS_TIMEOUT = 10  # seconds
METRICS = ("loss", "confident", "agreement", "images_per_s")


class TrainerStatus:
    """Reports a run of `steps` steps, of which earlier attempts took `first_step`."""

    run_id = ""

    def __init__(self, steps: int, first_step: int) -> None:
        self.steps, self.first_step = steps, first_step
        self.started, self.sent, self.warned = time.monotonic(), 0.0, False
        self.last = (first_step - 1, dict[str, float]())

    @classmethod
    def is_wanted(cls) -> bool:
        return all(os.environ.get(name) for name in (URL, CERTIFICATES, TOKEN))

    def start(self, config: dict[str, Any]) -> None: ...

    def log(self, step: int, values: dict[str, float]) -> None:
        self.last = (step, values)
        if time.monotonic() - self.sent >= EVERY:
            self.send()

    def close(self, finished: bool) -> None:
        self.send()

    def send(self) -> None:
        self.sent = time.monotonic()
        try:
            self.post({"trainerStatus": self.status()})
        except (OSError, ValueError) as error:
            if not self.warned:
                logger.warning(f"cannot report to Kubeflow Trainer: {reason(error)}; training goes on")
            self.warned = True

    def status(self) -> dict[str, Any]:
        step, values = self.last
        done = step + 1 - self.first_step
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        status: dict[str, Any] = {"progressPercentage": 100 * (step + 1) // self.steps, "lastUpdatedTime": now}
        if done > 0:
            remaining = (time.monotonic() - self.started) / done * (self.steps - step - 1)
            status["estimatedRemainingSeconds"] = round(remaining)
        metrics = [{"name": name, "value": f"{values[name]:.6g}"} for name in METRICS if name in values]
        return status | ({"metrics": metrics} if metrics else {})

    def post(self, body: dict[str, Any]) -> None:
        """Raises OSError or ValueError: the request failed. The token is read each time: it expires in an hour."""
        token = Path(os.environ[TOKEN]).read_text().strip()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        trusted = ssl.create_default_context(cafile=os.environ[CERTIFICATES])
        handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusted))
        request = urllib.request.Request(os.environ[URL], json.dumps(body).encode(), headers, method="POST")
        urllib.request.build_opener(*handlers).open(request, timeout=STATUS_TIMEOUT).close()
