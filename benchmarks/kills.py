"""What a kill costs: trains the bundled digits under the supervisor, kills it at random moments, says what was lost.

    python benchmarks/kills.py --kills 5 --interval 60 --epochs 120

Each moment is drawn between 0 and twice the interval after training began or went on. `worker`: the training process
gets SIGKILL, and the supervisor goes on. `pod`: supervisor and training get it, and are started again, as Kubeflow does
with a pod that vanished. Lost is the time since the newest whole checkpoint, or since training began without one; then
how long it took until a step was done again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from must.api.stages import call

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5, help="of each kind")
    parser.add_argument("--interval", type=int, default=60, help="checkpoint_seconds")
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--kinds", default="worker,pod")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        chance = random.Random(options.seed)
        for kind in options.kinds.split(","):
            training = Training(Path(folder) / kind, options)
            for number in range(options.kills):
                print(
                    f"{kind:7} {number + 1}: {training.kill(kind, chance.uniform(0, 2 * options.interval))}", flush=True
                )
            training.end()


class Training:
    """A supervised training and what it leaves."""

    def __init__(self, work: Path, options: argparse.Namespace) -> None:
        self.work, self.output = work, work / "bundle"
        call("demo", output=str(work / "demo"))
        index = call(
            "shard", source=str(work / "demo/images/unlabeled"), output=str(work / "shards"), labels="none"
        )  # fmt: skip
        classifier = str(work / "classifier.safetensors")
        call("classifier", classes=str(work / "demo/classes.yaml"), model=str(work / "demo/model"), output=classifier)
        settings = {"checkpoint_seconds": options.interval, "checkpoint_every": 10**6, "select": "none", "log_every": 1}
        self.values = {
            "index_sha256": index.sha256, "classifier": classifier, "output": str(self.output), "preset": "digits",
            "settings": settings, "epochs": options.epochs,
        }  # fmt: skip
        self.start()

    def start(self) -> None:
        code = (
            "import sys, json; from must.runtime.supervise import supervised; from must.runtime.stages import train; "
        )
        code += "supervised('train', train, 'run', sys.argv[1], **json.loads(sys.argv[2]))"
        command = [sys.executable, "-c", code, str(self.work), json.dumps(self.values)]
        log = (self.work / "log").open("ab")
        environment = os.environ | {"MUST_RETRIES": "99,0,1"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )

    def kill(self, kind: str, after: float) -> str:
        began = self.wait_for_step()
        time.sleep(after)
        newest = max((file.stat().st_mtime for file in self.work.glob("checkpoints/*/step-*.json")), default=began)
        killed = time.time()
        os.kill(self.child(), signal.SIGKILL)
        if kind == "pod":
            self.process.kill()
            self.process.wait()
            self.start()
        again = self.wait_for_step(killed)
        return (
            f"killed {after:5.1f} s after a step, lost {killed - max(newest, began):5.1f} s, "
            f"a step again after {again - killed:4.1f} s"
        )

    def wait_for_step(self, since: float = 0.0) -> float:
        """Until the log has a line that was written after `since`; the moment it was seen."""
        while True:
            with suppress(FileNotFoundError):
                file = self.output / "train_log.jsonl"
                if file.stat().st_mtime > since and file.stat().st_size:
                    return time.time()
            if self.process.poll() is not None:
                raise SystemExit((self.work / "log").read_text()[-2000:])
            time.sleep(0.05)

    def child(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])

    def end(self) -> None:
        self.process.kill()  # its stage ends with it
        self.process.wait()


if __name__ == "__main__":
    main()
