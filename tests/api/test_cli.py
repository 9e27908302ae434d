"""The command line as a user meets it: output and exit codes, in real processes where that makes a difference."""

import logging
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest

import must
from must.api import cli
from must.base.parameters import list_parameters
from must.table import COMMANDS
from tests import zoo
from tests.common import ended


def test_version_and_help(capsys):
    for flag, shown in (("--version", [f"must {must.__version__}"]), ("--help", [*COMMANDS, "exit codes"])):
        with pytest.raises(SystemExit, match="0"):
            cli.main([flag])
        text = capsys.readouterr().out
        assert all(words in text for words in shown)


@pytest.mark.parametrize("streams", [">/dev/full", "2>/dev/full", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_or_full_stops_nothing(tmp_path, streams):
    zoo.fill(tmp_path / "in", 5)
    command = f"exec {sys.executable} -m must shard --source {tmp_path}/in --output {tmp_path}/out {streams}"
    assert subprocess.run(["sh", "-c", command], capture_output=True, check=False).returncode == 0
    assert (tmp_path / "out" / "index.json").exists()


def test_a_wrong_stage_is_one_line(capfd):
    wrong = (("evaluates", "no such command; did you mean evaluate?"), ("--verison", "did you mean --version?"))
    for word, near in wrong:
        line = ended(capfd, 2, cli.main, [word])
        assert line.startswith(f"must: {word}: ") and near in line


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setitem(COMMANDS, "demo", COMMANDS["demo"]._replace(function="tests.api.test_cli:a_bug"))
    with pytest.raises(ValueError, match="invalid literal"):
        cli.main(["demo", "--output", "x"])


@pytest.mark.parametrize("stage", COMMANDS)
def test_help_has_an_example_and_begins_with_what_matters_most(stage, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([stage, "--help"])
    text = capsys.readouterr().out
    assert f"must {stage}" in text and "example:" in text
    parameters = list_parameters(COMMANDS[stage].config)
    if len(parameters) <= 12:
        return
    _, *groups = re.split(r"^(?=\w[^\n]*:\n)", text, flags=re.MULTILINE)
    titles = [group.partition(":")[0] for group in groups]
    assert titles[0] == "most used" and titles[-2:] == ["general", "example"] and len(titles) > 4
    required = [field for field in parameters if field.default is field.default_factory]
    assert all(
        f"  --{field.name.replace('_', '-')} " in groups[0] for field in required if not field.metadata["positional"]
    )
    assert len(re.findall(r"^  --", groups[0], flags=re.MULTILINE)) <= 10
    for name in (field.name for field in parameters if not field.metadata["positional"]):
        flag = rf"^  --{name.replace('_', '-')}[ ,]"
        assert len([group for group in groups if re.search(flag, group, flags=re.MULTILINE)]) == 1, name


def a_bug(_config):
    return int("no number")


@pytest.mark.parametrize("stage", [name for name, row in COMMANDS.items() if row.next])
def test_the_next_commands_can_be_pasted(stage, caplog):
    """A folder whose name a shell would take apart."""
    inputs = dict.fromkeys(("model", "shards", "split", "classifier", "baseline"), "a b")
    config = SimpleNamespace(output="it's work/", **inputs)
    with caplog.at_level(logging.INFO, "must"):
        cli.print_next(stage, config)
    named = "shard", "quickstart"  # whose next command has other inputs
    for line in caplog.messages[0].removeprefix("next: ").split("\n"):
        parsed = cli.build_parser().parse_args(shlex.split(line)[1:])
        assert any(str(value).startswith("it's work") for value in vars(parsed).values()) or stage in named
