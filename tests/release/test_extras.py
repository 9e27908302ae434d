"""The page on installing tells every extra, and none that is not there."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_names_every_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = (ROOT / "docs" / "install.md").read_text()
    rows = [line.split("|")[1] for line in text.split("\n") if line.startswith("|")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == extras.keys()
