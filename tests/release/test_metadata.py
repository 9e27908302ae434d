"""The version and the extras stand in one place; what repeats them for people says the same."""

import re
import tomllib

import pytest
import yaml

import must
from tests.common import ROOT

CLUSTERS = [ROOT / "pipeline" / "cluster.yaml", *sorted((ROOT / "pipeline" / "clusters").glob("*.yaml"))]


@pytest.mark.parametrize("file", CLUSTERS, ids=lambda file: file.stem)
def test_the_examples_name_this_versions_images(file):
    assert str(yaml.safe_load(file.read_text()).get("tag", must.__version__)) == must.__version__, "make version TO=..."


def test_citation():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == must.__version__, "make version TO=..."


def test_the_changelog_knows_it():
    versions = re.findall(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert must.__version__ in versions and len(versions) == len(set(versions))


def test_the_page_on_installing_names_every_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = (ROOT / "docs" / "install.md").read_text()
    rows = [line.split("|")[1] for line in text.split("\n") if line.startswith("|")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == extras.keys()
