"""Files of the registry, and files that promotion is given, which are damaged or of another kind: one line, code 2."""

import json

import pytest

from must.api.cli import main
from must.deploy.promote.registry import Registry
from tests.deploy.promote.bundles import make_bundle

DEEP = "[" * 100_000 + "]" * 100_000
FOREIGN = [
    DEEP,
    "[]",
    "null",
    '{"version": ' + "9" * 5000 + "}",
    '{"a": "\xff"}',
    "{}",
    '{"passed": null}',
    '{"created": 1}',
]
FOREIGN += ['{"metrics": 1, "version": "a", "created": "b", "backbone": "c"}', '{"adapted": 1}', '{"label_free": null}']


@pytest.fixture
def place(tmp_path):
    bundle = make_bundle(tmp_path / "model")
    main(["promote", "--registry", str(tmp_path / "registry"), "--name", "d", "--model", str(bundle)])
    return Registry(str(tmp_path / "registry"), "d")


def refused(capsys, *command):
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main([*map(str, command)])
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("text", FOREIGN, ids=range(len(FOREIGN)))
def test_a_foreign_file_is_one_line(place, tmp_path, capsys, text):
    (file := tmp_path / "file.json").write_bytes(text.encode("latin-1"))
    there = ["--registry", tmp_path / "registry", "--name", "d"]
    assert str(file) in refused(capsys, "gate", "--metrics", file)
    if "passed" not in text and "adapted" not in text:
        assert str(file) in refused(capsys, "promote", "--model", tmp_path / "model", "--decision", file, *there)
    version = place.latest().version
    (tmp_path / "registry" / "d" / version / "version.json").write_bytes(file.read_bytes())
    assert "version.json" in refused(capsys, "promote", "--list", *there)
    (tmp_path / "registry" / "d" / "decisions").mkdir()
    (tmp_path / "registry" / "d" / "decisions" / "key.json").write_bytes(file.read_bytes())
    assert place.decision("key") is None  # nothing is known: the run does its work


def test_a_latest_that_is_damaged_is_written_anew_as_its_line_says(place, tmp_path, capsys):
    version, there = place.latest().version, ["--registry", tmp_path / "registry", "--name", "d"]
    for damage in ("", DEEP, '{"version": "x"}'):
        (tmp_path / "registry" / "d" / "LATEST").write_text(damage)
        line = refused(capsys, "promote", "--rollback", *there)
        assert "LATEST is damaged" in line and "--rollback --to" in line
        assert f"there are: {version}" in refused(capsys, "promote", "--rollback", "--to", "other", *there)
        main(["promote", "--rollback", "--to", version, *map(str, there)])
        assert place.latest().version == version
    assert json.loads((tmp_path / "registry" / "d" / "LATEST").read_text())["reason"] == "LATEST was damaged"
