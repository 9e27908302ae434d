"""Names from outside on a terminal, in files, in cells and in messages."""

import csv
import io

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from must.base.parameters import load
from must.base.program import exiting
from must.base.text import (
    BRIEF_LENGTH,
    encode_utf8,
    escape_cell,
    format_csv,
    join_lines,
    make_printable,
    remove_secrets,
)
from must.config import TrainConfig

REQUIRED = {"shards": "s", "classifier": "c", "output": "o"}
HOSTILE = ["\x1b]0;pwned\x07\x1b[2J", "a\nb", "caf\udce9", "\u202egnp.exe", "\x9b31m", "\ud800", "ﬀ\x7f"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_one_line_of_what_can_be_seen(name):
    shown = make_printable(f"before {name} after")
    assert shown.isprintable() and shown.startswith("before ") and shown.endswith(" after") and "?" in shown
    shown.encode()
    encode_utf8(name).decode()


def test_plain_names_of_any_language_stay_as_they_are():
    for name in ("zero", "café 7", "数字", "n/a (old)", "über-groß"):
        assert make_printable(name) == name and encode_utf8(name).decode() == name and escape_cell(name) == name
    assert make_printable("abcdef", 4) == "abc…" and encode_utf8("caf\udce9").decode() == r"caf\udce9"


def test_a_file_of_names_cannot_steer_the_terminal_that_shows_it():
    assert join_lines(["\x1b[31mred", "a\nb\x9b31m", "café\x7f"]).decode() == "\\x1b[31mred\na b\\x9b31m\ncafé\\x7f\n"
    assert escape_cell("\x1b]0;pwned\x07") == r"\x1b]0;pwned\x07" and escape_cell("数字\u3000x") == "数字\u3000x"


FORMULAS = ["=cmd|' /C calc'!A0", "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1"]
OTHERS = ["'quoted", "''", "plain", "", "a\r=1", "a,b", 'a"b']


@pytest.mark.parametrize("name", [*FORMULAS, *OTHERS])
def test_no_cell_starts_a_formula_and_every_name_comes_back(name):
    row = format_csv([[escape_cell(name), "0.5"]]).decode()
    assert row.endswith("0.5\n")
    ((text, number),) = csv.reader(io.StringIO(row, newline=""))
    assert not text.startswith(tuple("=+-@\t\r\n\uff1d")) and number == "0.5"
    assert text.removeprefix("'") == name


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)
)  # 10^8 words if it is written out


@pytest.mark.parametrize("name", ["epochs", "lr", "resume", "precision", "preset", "randaugment_ops", "strong_scale"])
@pytest.mark.parametrize(
    "value", ["x" * 10**6, yaml.safe_load(BOMB)["h"], {"k": "v" * 10**6}, 1 << 50_000, float("inf")], ids=range(5)
)
def test_a_wrong_value_of_any_size_is_a_short_line(name, value):
    try:
        load(TrainConfig, {**REQUIRED, name: value})
    except ValueError as error:
        assert len(str(error)) < BRIEF_LENGTH + 200 and str(error).startswith(f"--{name.replace('_', '-')}")
    else:
        assert isinstance(value, str | float) or name == "randaugment_ops"  # these are names and numbers, if odd ones


def test_what_the_command_line_says_last_cannot_steer_the_terminal(capsys):
    with pytest.raises(SystemExit), exiting("shard"):
        raise FileNotFoundError(2, "no such file", "\x1b[2Jcaf\udce9" + "x" * 10**5)
    line = capsys.readouterr().err.removesuffix("\n")
    assert line.isprintable() and line.startswith("must shard: ?[2Jcaf?x") and len(line) < 2100


WITHOUT_SECRETS = [
    "abfss://container@account.dfs.core.windows.net/x",
    "gs://bucket/what?.png is damaged",
    "gs://bucket/me@home/a.png",
    "http://localhost:8080/a@b.png",
    "no address at all: a@b, c?d=e",
    *("://", "a://", "s3://"),
]


@pytest.mark.parametrize(
    "text, shown",
    [
        ("https://h/a.png?sig=SECRET: unknown scheme", "https://h/a.png?***: unknown scheme"),
        ("http://usr:SECRET@127.0.0.1:9 cannot be reached", "http://***@127.0.0.1:9 cannot be reached"),
        ('URL: "http://u:SE/CRET@h:9/b?list-type=2&prefix="', 'URL: "http://***@h:9/b?***"'),
        ("http://u:SE/CRET@h/x", "http://***@h/x"),
        ("s3://KEY:SECRET@bucket/a.png", "s3://***@bucket/a.png"),
        ("'s3://b/a.png?X-Amz-Signature=SECRET'", "'s3://b/a.png?***'"),
        ("az://c/a?sv=1&sig=SECRET, az://c/b?sv=1&sig=SECRET", "az://c/a?***, az://c/b?***"),
        ("a,https://u:SECRET@h/a,https://u:SECRET@h/b", "a,https://***@h/a,https://***@h/b"),
        ("https://h/#access_token=SECRET", "https://h/"),
        ("exceeded with url: /a.png?sv=1&sig=SECRET%3D (by", "exceeded with url: /a.png?sv=1&sig=*** (by"),
        ("AccountName=a;AccountKey=SECRET==;Endpoint=http://h", "AccountName=a;AccountKey=***;Endpoint=http://h"),
        ("abfss://container:SECRET@account.dfs.core.windows.net/x", "abfss://***@account.dfs.core.windows.net/x"),
        *((same, same) for same in WITHOUT_SECRETS),
    ],
)
def test_people_see_an_address_without_its_secrets(text, shown):
    assert remove_secrets(text) == shown == make_printable(text)


@given(st.text(alphabet="ab:/@?=#.,'\" \n", max_size=60))
def test_what_has_no_secrets_any_more_stays_as_it_is(text):
    once = remove_secrets(text)
    assert remove_secrets(once) == once
