"""Real nodes for the pods of the stand-in API server: the command that a TrainJob has, with torchrun and gloo."""

import os
import subprocess
import sys
import threading

from tests.gcs import free_port


class Fleet:
    """Starts a process a pod. What it prints is the pod's log; how it ends is how the pod does."""

    def __init__(self, api):
        self.api, self.processes = api, []
        api.on_start = self.start

    def start(self, api, name):
        port = str(free_port())
        for pod in api.pods[name]:
            (container,) = pod.to_dict()["spec"]["containers"]
            given = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
            meeting = {"PET_NODE_RANK": str(pod.node), "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port}
            process = subprocess.Popen(
                [sys.executable, *container["command"][1:], *container["args"]],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                env=os.environ | given | meeting | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            self.processes.append(process)
            threading.Thread(target=self.live, args=(name, pod, process), daemon=True).start()

    def live(self, name, pod, process):
        for line in process.stdout:
            pod.say(line.rstrip("\n"))
        code = process.wait()
        pod.ended = code
        if pod in self.api.pods.get(name, []):
            self.api.exit(name, pod.node, code)

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait()
