"""What an extra is for works without the packages that it does not bring."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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


KFP = ("kfp", "kubernetes")
MAIN = "from must_pipeline.cli import main; main()"


def test_submitting_needs_no_kfp(tmp_path):
    """[submit]: as far as the server, which is not there."""
    (tmp_path / "run.yaml").write_text("source: gs://b/photos\nclasses: gs://b/c.yaml\nwork_uri: gs://b/work\n")
    done = without(KFP, MAIN, "submit", "--parameters", tmp_path / "run.yaml", "--host", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9" in done.stderr and "Traceback" not in done.stderr
    done = without(KFP, MAIN, "schedule", "list", "--host", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [("compile",), ("run", "--parameters", "run.yaml", "--output", "out")])
def test_what_needs_kfp_names_the_extra(command, tmp_path):
    (tmp_path / "run.yaml").write_text("source: photos\nclasses: c.yaml\nwork_uri: work\n")
    done = without(KFP, MAIN, *command, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].endswith("needs the package kfp: pip install 'must-clip[pipeline]'")
    assert "Traceback" not in done.stderr
