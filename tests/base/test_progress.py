"""Where nobody sees a bar, a long command says how far it is."""

import subprocess
import sys

import pytest

from must.base import program
from must.base.console import attach
from must.base.program import show_bar


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(program, "LINE_INTERVAL", 0)
    attach()


def test_it_says_what_how_much_and_how_long_still(capsys):
    for number in show_bar(range(3), total=3, unit="img", desc="predictions"):
        if number == 2:
            assert capsys.readouterr().err.splitlines()[-1].startswith("predictions:  67% 2/3 [00:00<00:0")
    with show_bar(unit="img", desc="predict") as shown:
        shown.update(5)
    assert capsys.readouterr().err.splitlines()[-1].startswith("predict: 5img [00:0")


def test_a_script_that_configures_no_logging_is_told_too():
    code = "from must.base import program; program.LINE_INTERVAL = 0; list(program.show_bar(range(3), desc='train'))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stderr.splitlines()[-1].startswith("train: 100% 3/3 [") and not shown.stdout


def test_there_is_no_line_within_a_minute_nor_of_a_quiet_bar(capsys, monkeypatch):
    with show_bar(total=2, desc="quiet", quiet=True) as shown:
        shown.update(2)
        assert shown.disable
    monkeypatch.setattr(program, "LINE_INTERVAL", 60)
    assert list(show_bar(range(3), desc="short")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
