"""The commands of docs/containers.md, as they stand, as a user who is not root."""

import json
import os
import re
import subprocess
from pathlib import Path

import must
from tests.containers.engine import ENGINE, PREFIX, UID, VERSION, rootless

DOCS = Path(must.__file__).parent.parent / "docs" / "containers.md"


def commands() -> str:
    """The first block of shell commands, which makes the model of the bundled example."""
    block = re.search(r"```sh\n(.*?)```", DOCS.read_text(), re.S).group(1)
    assert f"VERSION={must.__version__}\n" in block
    return block.replace(f"VERSION={must.__version__}\n", f"VERSION={VERSION}\n")


def test_every_stage_by_hand_with_the_documented_commands(demo, tmp_path):
    (tmp_path / "data").symlink_to(demo)
    options = "--env OMP_NUM_THREADS=1" + (" --userns=keep-id" if rootless() else "")
    preamble = f"""set -euo pipefail
        docker() {{ local verb=$1; shift; echo "== $*" >&2; '{ENGINE}' "$verb" {options} "$@"; }}
        id() {{ echo {UID}; }}
    """
    script = commands()
    for name in ("must-shard", "must-torch", "must-train"):
        script = script.replace(f"run {name}:", f"run {PREFIX}{name}:")
    result = subprocess.run(
        ["bash", "-c", preamble + script], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=1500
    )
    transcript = result.stdout + result.stderr
    assert result.returncode == 0, transcript
    if folder := os.environ.get("TRANSCRIPTS"):
        Path(folder, "by-hand.txt").write_text(transcript)
    assert len(re.findall("^== .*--read-only", result.stderr, re.M)) == 7

    written = [path for path in demo.rglob("*") if path.stat().st_uid == UID]
    for name in ("shards/index.json", "classifier.safetensors", "model-adapted/model.safetensors",
                 "report/report.html", "onnx/model.onnx", "registry"):  # fmt: skip
        assert demo / name in written, name
    metrics = json.loads((demo / "report" / "metrics.json").read_text())
    assert metrics["baseline"]["top1"] > 0.5 and metrics["adapted"]["top1"] > 0.5
    images = list((demo / "images" / "test" / "seven").glob("*.png"))
    assert all(image.name in result.stdout for image in images)
