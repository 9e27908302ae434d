"""Prints a TrainJob's log of rank 0 as it is written, across lost connections and replaced pods."""

import threading
from collections import deque

from must_components.train_job.jobs import Jobs
from must_components.train_job.manifest import NODE

INDEX = "batch.kubernetes.io/job-completion-index"
LINES_KEPT = 30


class LogFollower(threading.Thread):
    """Starts when the pod starts. If the connection is lost, it reads the log again and skips the printed lines.

    A restarted container has a new log, which is printed from its first line.
    """

    def __init__(self, jobs: Jobs, name: str, pause: float) -> None:
        super().__init__(daemon=True)
        self.jobs, self.name, self.pause = jobs, name, pause
        self.over = threading.Event()
        self.pod, self.container, self.printed = "", "", 0
        self.last: deque[str] = deque(maxlen=LINES_KEPT)

    def run(self) -> None:
        last = False
        while not last:
            last = self.over.is_set()  # once more after the end: a short job may end before its log exists
            try:
                self.follow()
            except Exception as error:  # the job's state matters, not the log
                if self.pod and not last:
                    print(f"[the log of {self.pod} broke off ({type(error).__name__}); reading on]", flush=True)
            self.over.wait(self.pause)

    def follow(self) -> None:
        if (current := self.find()) is None:
            return
        pod, container = current
        if container != self.container:
            if self.container:
                event = f"was replaced by {pod}" if pod != self.pod else "was restarted in place"
                print(f"[{self.pod} {event}]", flush=True)
            self.pod, self.container, self.printed = pod, container, 0
        for number, line in enumerate(self.jobs.follow(pod), 1):
            if number > self.printed:
                print(line, flush=True)
                self.printed = number
                self.last.append(line)

    def find(self) -> tuple[str, str] | None:
        """The newest pod of the first node and its current container, once it runs."""
        for pod in self.jobs.pods(self.name):
            if pod.metadata.labels.get(INDEX) != "0":
                continue
            for status in pod.status.container_statuses or []:
                if status.name == NODE and status.container_id:
                    return pod.metadata.name, status.container_id
            return None
        return None

    def finish(self, seconds: float) -> None:
        """Waits at most so long for the end of the log."""
        self.over.set()
        self.join(seconds)
