"""What an extra is for works without the packages that it does not bring."""

import subprocess
import sys

import pytest

from must.data.reader import ShardReader
from must_pipeline.cli import COMMANDS
from tests.common import ROOT

KFP = ("kfp", "kfp_server_api", "kubernetes")
MAIN = "from must_pipeline.cli import main; main()"
HIDE = """
import importlib.abc, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
"""


def without(hidden, code, *arguments, cwd=ROOT):
    command = [sys.executable, "-c", HIDE.format(hidden=hidden) + code, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


PIPELINE = ("--pipeline", ROOT / "pipeline" / "must_pipeline.yaml", "--parameters", "run.yaml")


@pytest.mark.parametrize("command", [("compile",), ("run", *PIPELINE, "--output", "out"), ("submit", *PIPELINE)])
def test_what_needs_kfp_names_the_extra(command, tmp_path):
    (tmp_path / "run.yaml").write_text("source: photos\nclasses: c.yaml\nwork_uri: work\n")
    done = without(KFP, MAIN, *command, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].endswith("needs the package kfp: pip install 'must-clip[pipeline]'")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_needs_none_of_its_packages(command):
    done = without(KFP, MAIN, command, "--help")
    assert done.returncode == 0 and "--help" in done.stdout, done.stderr


OTHER_SYSTEM = """
import os, signal, sys
import multiprocessing.util, pathlib, shutil, subprocess, tempfile  # which have looked at the system they are on
for name in {hidden!r}:
    sys.modules.pop(name, None)
for name in ("register_at_fork", "fork", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_TMPFILE", "fchmod",
             "sched_getaffinity", "setsid", "killpg", "getpgid", "geteuid", "posix_fadvise", "statvfs"):
    vars(os).pop(name, None)
os.process_cpu_count = os.cpu_count  # Python's own from 3.13 on, which is this where there is no sched_getaffinity
for name in ("pthread_sigmask", "SIGKILL", "SIGHUP", "SIGALRM", "SIGPIPE", "SIGCHLD", "SIG_BLOCK", "SIG_UNBLOCK"):
    vars(signal).pop(name, None)
"""
UNIX = ("fcntl", "resource", "termios", "grp", "pwd", "torch")


def test_predicting_asks_for_nothing_that_windows_lacks(exported, pictures, tmp_path):
    """As far as can be seen on Linux: the modules and functions of Unix are gone, and so is torch."""
    system = OTHER_SYSTEM.format(hidden=UNIX)
    image, output = pictures[0][0], tmp_path / "labels.csv"
    command = system + "from must.api.cli import main; main()"
    done = without(UNIX, command, "predict", "--model", exported[1], "--output", output, image)
    assert done.returncode == 0, done.stderr
    load = f"import must; print(must.load({str(exported[1])!r})({str(image)!r}).name)"
    loaded = without(UNIX, system + load)
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.strip() in output.read_text().splitlines()[1].split(",")


def test_what_works_on_unix_alone_says_so(tmp_path):
    command = OTHER_SYSTEM.format(hidden=UNIX) + "from must.api.cli import main; main()"
    (tmp_path / "photos").mkdir()
    done = without(UNIX, command, "shard", "--source", tmp_path / "photos", "--output", tmp_path / "shards")
    assert done.returncode == 2 and "Linux or macOS" in done.stderr and "pip install" not in done.stderr


@pytest.mark.slow
def test_answers_in_a_table_are_taken_without_the_packages_of_a_server(digits, tmp_path):
    name = ShardReader(digits.shards, "train").description(0)["source"]
    (tmp_path / "answers.csv").write_text(f"image,class\n{name},one\n")
    flags = [f"--model={digits.adapted}", f"--baseline={digits.classifier}", f"--shards={digits.shards}"]
    flags += [f"--output={tmp_path}/review", "--workers=0", "--device=cpu"]
    server, command = (
        ("starlette", "uvicorn", "httptools", "prometheus_client"),
        "from must.api.cli import main; main()",
    )
    done = without(server, command, "review", *flags, "--add", tmp_path / "answers.csv")
    assert done.returncode == 0 and "1 new answer" in done.stdout, done.stderr
    done = without(server, command, "review", *flags)
    assert done.returncode == 2 and "pip install 'must-clip[all]'" in done.stderr
