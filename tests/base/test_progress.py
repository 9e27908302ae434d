"""Where nobody sees a bar, a long command says how far it is."""

import time

import pytest

from must.base import progress
from must.base.console import attach
from must.base.progress import bar, duration, minutely, parts, working


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(progress, "LINE_INTERVAL", 0.02)
    attach()


def until(capsys, text):
    """Waits for a line with the text."""
    said = ""
    while text not in said:
        time.sleep(0.01)
        said += capsys.readouterr().err
    return said


def test_it_says_what_how_much_and_how_long_still(capsys):
    with minutely("review"):
        for number in bar(range(3), total=3, unit="img", desc="predictions"):
            if number == 2:
                said = until(capsys, "must review: predictions: 2 of 3 images, ")
                assert " a second, " in said and said.rstrip().endswith("left")
        with parts("export", 5) as begin:
            begin("the model")
            until(capsys, "must review: export (the model): 0 of 5 parts")
        until(capsys, "must review: at work for 0 s")
        with working("review"), working("select"):
            until(capsys, "must review: select, at work for 0 s")
    assert not progress._hidden


def test_it_is_silent_while_it_waits_for_people(capsys):
    with minutely("serve", waits=True):
        time.sleep(0.2)
        assert capsys.readouterr().err == ""
        with bar(total=2, desc="alpha", unit="img"):
            until(capsys, "must serve: alpha: 0 of 2 images")
        with bar(total=2, desc="quiet", quiet=True) as shown:
            shown.update(2)
            assert shown.disable and not progress._hidden


def test_durations():
    assert [duration(seconds) for seconds in (40, 720, 12_600)] == ["40 s", "12 min", "3.5 h"]
