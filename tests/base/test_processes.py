"""Worker processes under every start method: the same bytes, and none is left behind."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from must.api.stages import call
from must.base.processes import METHOD, start_context
from tests.data.shards.test_shard_restart import wait_until

ROOT = str(Path(__file__).parents[2])
SCRIPT = """
import multiprocessing, sys
from tests.base.test_processes import shard_and_train

multiprocessing.set_start_method("forkserver")
shard_and_train(*sys.argv[1:])
"""


def shard_and_train(images: str, classifier: str, output: str) -> None:
    call("shard", source=images, output=f"{output}/shards", samples_per_shard=64, workers=2)
    call(
        "train", shards=f"{output}/shards", classifier=classifier, output=f"{output}/model", preset="digits", epochs=1,
        batch_size=32, workers=2, device="cpu",
    )  # fmt: skip


@pytest.mark.slow
def test_a_fork_server_gives_the_same_shards_and_the_same_model(digits, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv(METHOD, raising=False)
    given = str(digits.images / "train"), digits.classifier
    shard_and_train(*given, str(tmp_path / "fork"))
    subprocess.run([sys.executable, "-c", SCRIPT, *given, str(tmp_path / "forkserver")], check=True, env=environment())
    found = {}
    for method in ("fork", "forkserver"):
        files = [path for path in (tmp_path / method).rglob("*") if path.suffix in (".tar", ".npy", ".safetensors")]
        found[method] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert found["fork"] == found["forkserver"] and {"names-0000.npy", "model.safetensors"} <= found["fork"].keys()


LEFT_BEHIND = """
import os, signal
from concurrent.futures import ProcessPoolExecutor
from must.base.processes import begin_worker, start_context

if __name__ == "__main__":
    with ProcessPoolExecutor(1, start_context("must.base.processes"), begin_worker, (dict(os.environ),)) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        {end}
"""


def run_left_behind(tmp_path: Path, method: str, end: str) -> tuple[int, int]:
    script = tmp_path / "script.py"
    script.write_text(LEFT_BEHIND.format(end=end))
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=tmp_path, timeout=100,
        env=environment() | {METHOD: method}, start_new_session=True,
    )  # fmt: skip
    return done.returncode, int(done.stdout.split()[0])


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_worker_ends_with_the_program_that_was_killed(tmp_path: Path, method: str) -> None:
    code, worker = run_left_behind(tmp_path, method, "os.kill(os.getpid(), signal.SIGKILL)")
    assert code == -signal.SIGKILL
    wait_until(lambda: not Path(f"/proc/{worker}").exists())


def test_a_fork_server_outlives_a_sigterm_to_the_group(tmp_path: Path) -> None:
    end = (
        "signal.signal(signal.SIGTERM, lambda *_: None); os.killpg(0, signal.SIGTERM); "
        "context = start_context('must.base.processes'); one = context.Process(target=print); one.start(); one.join(); "
        "os._exit(one.exitcode)"
    )
    assert run_left_behind(tmp_path, "forkserver", end)[0] == 0


def test_an_unknown_start_method_is_one_line(monkeypatch) -> None:
    monkeypatch.setenv(METHOD, "frok")
    with pytest.raises(ValueError, match="MUST_START_METHOD=frok: no such start method; known are fork, "):
        start_context("must.base.processes")


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != METHOD} | {"PYTHONPATH": ROOT}
