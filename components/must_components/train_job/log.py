"""The log of a TrainJob's first node as it is written, and the nodes that failed."""

from collections import Counter, deque
from contextlib import suppress
from typing import Any

from must.base.errors import TransientError
from must.base.exits import PREEMPTED
from must_components.cluster import Cluster
from must_components.train_job.manifest import NODE

INDEX = "batch.kubernetes.io/job-completion-index"
LINES = 30  # of a failed job's log and of its events, for its last message
SECOND_LENGTH = len("2026-01-01T12:00:00")  # the beginning of a timestamp


class JobLog:
    """Prints the new lines of rank 0, also of a pod or a container that replaced another one."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        self.pod, self.container, self.since = "", "", ""  # the last is the newest timestamp of a printed line
        self.printed = Counter[str]()  # printed lines of that second, with their timestamps; several may have the same
        self.last: deque[str] = deque(maxlen=LINES)

    def print_new(self) -> None:
        with suppress(TransientError):  # the job's state matters, not the log
            if (current := self.find()) is None:
                return
            pod, container = current
            if container != self.container:
                if self.container:
                    event = f"was replaced by {pod}" if pod != self.pod else "was restarted in place"
                    print(f"[{self.pod} {event}]", flush=True)
                self.pod, self.container, self.since, self.printed = pod, container, "", Counter()
            known = Counter(self.printed)
            for line in filter(None, self.cluster.pod_log(pod, since=self.since).split("\n")):
                if known[line]:
                    known[line] -= 1
                    continue
                time, _, text = line.partition(" ")
                print(text, flush=True)
                self.last.append(text)
                self.since = max(self.since, time)
                self.printed[line] += 1
            second = self.since[:SECOND_LENGTH]
            self.printed = Counter(
                {line: count for line, count in self.printed.items() if line[:SECOND_LENGTH] >= second}
            )

    def find(self) -> tuple[str, str] | None:
        """The newest pod of the first node and its current container, once it runs."""
        for pod in self.cluster.node_pods(self.name):
            if pod["metadata"]["labels"].get(INDEX) == "0":
                for status in pod.get("status", {}).get("containerStatuses", []):
                    if status["name"] == NODE and status.get("containerID"):
                        return pod["metadata"]["name"], status["containerID"]
                return None
        return None


def failed_nodes(cluster: Cluster, name: str) -> list[tuple[str, int, str]]:
    """(node, exit code, pod) of the failed containers, by time; those that ended because a peer failed come last."""
    failed: list[tuple[bool, str, str, int, str]] = []
    for pod in cluster.node_pods(name):
        for status in pod.get("status", {}).get("containerStatuses", []):
            states: list[dict[str, Any]] = [status.get("state") or {}, status.get("lastState") or {}]
            ended = next((state["terminated"] for state in states if "terminated" in state), None)
            if ended and ended["exitCode"]:
                code, time = int(ended["exitCode"]), ended.get("finishedAt") or pod["metadata"]["creationTimestamp"]
                node = pod["metadata"]["labels"].get(INDEX, "?")
                failed.append((code == PREEMPTED, time, node, code, pod["metadata"]["name"]))
    return [(node, code, pod) for _, _, node, code, pod in sorted(failed)]
