"""Links of all pages as a code host shows them, those outside docs/ too, which the site's build does not look at; and
the pictures: those that need no training are what `make pictures` would draw now, and all are small."""

import re
import sys

import pytest

from tests.common import ROOT

PICTURES = ROOT / "docs" / "pictures"
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(page):
    """As GitHub makes them from headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


@pytest.mark.parametrize("module, draw, name", [("pictures_dag", "dag", "pipeline"), ("pictures", "order", "order")])
def test_is_current(module, draw, name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    sys.modules.pop(module, None)  # pytest may know docs/pictures, the folder, by this name
    drawn = getattr(__import__(module), draw)()
    assert drawn == (PICTURES / f"{name}.svg").read_text(), "run `make pictures`"


def test_all_are_small_and_shown():
    sizes = {file.name: file.stat().st_size for file in PICTURES.iterdir()}
    pages = "".join(page.read_text() for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    assert max(sizes.values()) < 150_000 and not [name for name in sizes if f"pictures/{name}" not in pages]
