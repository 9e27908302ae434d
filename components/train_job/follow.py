"""Prints a TrainJob's log of rank 0 while it grows, whatever happens to the connection or the pod."""

from __future__ import annotations

import threading
from typing import Any

STEP = "node-0"


class LogFollower(threading.Thread):
    """Starts when the pod does. A log that breaks off is read again, and the lines that were printed are skipped."""

    def __init__(self, client: Any, name: str, pause: float) -> None:
        super().__init__(daemon=True)
        self.client, self.name, self.pause = client, name, pause
        self.over = threading.Event()
        self.pod, self.printed = "", 0

    def run(self) -> None:
        last = False
        while not last:
            last = self.over.is_set()  # once more after the end: a short job may be over before its log was found
            try:
                self.follow()
            except Exception as error:  # the job's state decides, not the log
                cause = error.__cause__ or error
                if self.pod and not last:
                    print(f"[the log of {self.pod} broke off ({type(cause).__name__}); reading on]", flush=True)
            self.over.wait(self.pause)

    def follow(self) -> None:
        step = next((step for step in self.client.get_job(self.name).steps if step.name == STEP), None)
        if step is None or step.status == "Pending":
            return
        if step.pod_name != self.pod:  # the first one, or a restarted one
            if self.pod:
                print(f"[{self.pod} was replaced by {step.pod_name}]", flush=True)
            self.pod, self.printed = step.pod_name, 0
        for number, line in enumerate(self.client.get_job_logs(self.name, step=STEP, follow=True), 1):
            if number > self.printed:
                print(line, flush=True)
                self.printed = number

    def finish(self, seconds: float) -> None:
        """Waits for what is left of a log that ends."""
        self.over.set()
        self.join(seconds)
