"""Time until --help and until an error message: seconds, CPU seconds, and their ratio to Python's start.

    python benchmarks/startup.py [--runs 5]
    python benchmarks/startup.py --dag [--runs 3]

Medians. "python -c pass" is part of every command; the stages with a model first need "import torch, open_clip". Each
command runs once before it counts, so that its files are in the page cache.

--dag: the cost of a process per stage: the pipeline on the bundled digits, one epoch, on the local runner, and the same
steps in one process, in turn. Needs kfp.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

PYTHON = (sys.executable, "-c")
MUST = (sys.executable, "-m", "must")
NEEDED = "--classifier none.safetensors --output model"
COMMANDS = {
    "python -c pass": [*PYTHON, "pass"],
    "python -c 'import torch, open_clip'": [*PYTHON, "import torch, open_clip"],
    **{
        f"must {words}": [*MUST, *shlex.split(words)]
        for words in (
            "--help",
            "train --help",
            f"train --shards nowhere {NEEDED}",
            f"train --shards nowhere {NEEDED} --epochs some",
            "evaluate --model nowhere --shards nowhere --output report",
            "predict --model nowhere.onnx photo.jpg",
        )
    },
}
DAG = "must_pipeline run --parameters ../pipeline.yaml --output dag"
STEPS = """
import must, yaml
p = yaml.safe_load(open("../pipeline.yaml"))
must.shard(source=p["source"], test_source=p["test_source"], labels=p["labels"], output="shards")
must.classifier(classes=p["classes"], model=p["model"], output="c.safetensors", model_store="models")
must.train(shards="shards", classifier="c.safetensors", output="model", epochs=p["epochs"])
must.evaluate(model="model", baseline="c.safetensors", shards="shards", output="report")
must.export(model="model", output="onnx", shards="shards", metrics="report/metrics.json")
must.gate(metrics="report/metrics.json", gate=p["gate"], output="decision.json")
must.promote(model="model", onnx="onnx", metrics="report/metrics.json", decision="decision.json", registry="registry",
             name=p["model_name"])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dag", action="store_true")
    options = parser.parse_args()
    runs = options.runs
    if options.dag:
        with tempfile.TemporaryDirectory() as folder:
            return compare(Path(folder), runs)
    print(f"{'':<88}{'seconds':>8}{'CPU':>7}{'ratio':>7}")
    plain = 0.0
    for name, command in COMMANDS.items():
        measure(command)
        seconds, cpu = (
            statistics.median(values) for values in zip(*(measure(command) for _ in range(runs)), strict=True)
        )
        plain = plain or cpu
        print(f"{name:<88}{seconds:>8.2f}{cpu:>7.2f}{cpu / plain:>7.1f}")


def compare(folder: Path, runs: int) -> None:
    subprocess.run([*MUST, "demo", "--output", str(folder)], check=True, stdout=subprocess.DEVNULL)
    parameters = yaml.safe_load((folder / "pipeline.yaml").read_text()) | {"epochs": 1, "gate": "none"}
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(parameters))
    commands = {"dag": [sys.executable, "-m", *DAG.split()], "one": [*PYTHON, STEPS]}
    ratios = []
    for _ in range(runs):
        (dag, dag_cpu), (one, one_cpu) = (measure(command, str(folder)) for command in commands.values())
        ratios.append(dag_cpu / one_cpu)
        print(f"the DAG {dag:.1f} s, CPU {dag_cpu:.1f} s; one process {one:.1f} s, CPU {one_cpu:.1f} s", flush=True)
    print(f"CPU seconds of the DAG by those of one process: {statistics.median(ratios):.2f}")


def measure(command: list[str], below: str | None = None) -> tuple[float, float]:
    """Wall seconds and CPU seconds (user and system) of one run in an empty folder.

    Raises:
        SystemExit: the command failed and `below`, the folder for the empty folder, was given.
    """
    with tempfile.TemporaryDirectory(dir=below) as folder:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if below and status:
            raise SystemExit(f"failed: {shlex.join(command)}")
        return time.perf_counter() - began, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
