"""A bug says that it is one: exit code 1 and a traceback, whatever the class of its error; wrong input is one line."""

import os
import subprocess
import sys

import numpy as np
import pytest

import must
from must.base.errors import MustError, TransientError, UserError
from must.base.lock import HeldError
from must.base.parameters import require
from must.base.program import BUG, HELD, PREEMPTED, WRONG_INPUT, exiting, find_exit_code


def test_a_bug_is_no_users_error(capsys):
    with pytest.raises(ValueError) as raised, exiting("train"):
        np.zeros(3).reshape(2)  # as numpy and Python raise where our own code is wrong
    assert find_exit_code(raised.value) == BUG and not isinstance(raised.value, MustError)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "error, code",
    [
        (UserError("--lr: no"), WRONG_INPUT),
        (TransientError("gs://b: no answer"), PREEMPTED),
        (HeldError("/x is being written"), HELD),
        (FileNotFoundError(2, "No such file or directory", "x"), WRONG_INPUT),
    ],
)
def test_what_must_raises_is_one_line_and_a_code(error, code, capsys):
    with pytest.raises(SystemExit) as end, exiting("train"):
        raise error
    assert end.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("must train: ")


def test_full_memory_is_one_line_and_exit_code_2(tmp_path):
    (file := tmp_path / "metrics.json").touch()
    os.truncate(file, 100 << 30)  # takes no disk
    command = f"ulimit -v 4000000; exec {sys.executable} -m must gate --metrics {file} --output {tmp_path}/decision"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == WRONG_INPUT and line.startswith("must gate: memory is full")


def test_the_classes_are_at_must_and_are_value_errors():
    assert (must.MustError, must.UserError, must.TransientError) == (MustError, UserError, TransientError)
    for kind in (UserError, TransientError, HeldError):
        assert issubclass(kind, MustError) and issubclass(kind, ValueError)
    with pytest.raises(must.UserError, match=r"^--lr: no$"):
        require(False, "--lr: no")
