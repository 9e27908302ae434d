"""Beside triton, which PyPI's torch brings on Linux, a program prints its own lines alone, at its end too."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

import must

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None and not os.environ.get("REQUIRE_TRITON"),
    reason="triton is not installed; `make test-triton` runs this",
)


def run(*words, cwd):
    """(exit code, stdout, stderr)"""
    done = subprocess.run([sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_a_command_that_ends_well_and_one_that_fails(digits, pictures, tmp_path):
    image, _ = pictures[0]
    (found,) = must.load(digits.adapted)([str(image)])
    line = f"{image}  {found.name} {found.probability:.1%}\n"
    assert run("-m", "must", "predict", image, "--model", digits.adapted, cwd=tmp_path) == (0, line, "")
    command = ("-m", "must", "evaluate", "--model", digits.adapted, "--shards", digits.shards, "--output", "report")
    message = "must evaluate: --device cuda:99: no such device here; use 'auto' or an existing one\n"
    assert run(*command, "--device", "cuda:99", cwd=tmp_path) == (2, "", message)
