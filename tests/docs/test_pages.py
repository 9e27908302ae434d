"""Links of all pages as a code host shows them, those outside docs/ too, which the site's build does not look at; files
and modules that pages and docstrings name; and the pictures: those that need no training are what `make pictures` would
draw now, and all are small."""

import re
import sys

import pytest

from tests.common import ROOT

PICTURES = ROOT / "docs" / "pictures"
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"]
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


CODE = [path for home in ("must", "components", "pipeline", "tests") for path in (ROOT / home).rglob("*.py")]
FILE = re.compile(r"`((?:must|components|pipeline|tests|benchmarks|docs|images|deploy|must_\w+)/[\w./-]+\.\w+)`")
MODULE = re.compile(r"`(must(?:_\w+)?(?:\.\w+)+)(?:\(.*?\))?`")


def is_there(name):
    """Whether it is a module or a package, or a name that one of them defines."""
    whole, above = name.replace(".", "/"), name.rpartition(".")[0].replace(".", "/")
    homes = [ROOT / home for home in ("", "components", "pipeline")]
    if any((home / f"{whole}.py").exists() or (home / whole).is_dir() for home in homes):
        return True
    files = [home / file for home in homes for file in (f"{above}.py", f"{above}/__init__.py")]
    return any(re.search(rf"\b{name.split('.')[-1]}\b", file.read_text()) for file in files if file.exists())


def test_named_files_and_modules_exist():
    missing = []
    for page in [*PAGES, *CODE]:
        if page.name == "CHANGELOG.md":
            continue
        text = page.read_text()
        files = [name for name in FILE.findall(text) if "NAME" not in name]
        missing += [
            name for name in files if not any((ROOT / home / name).exists() for home in ("", "components", "pipeline"))
        ]
        dotted = [name for name in MODULE.findall(text) if not name.endswith((".json", ".yaml"))]
        missing += [name for name in dotted if name.count(".") > 1 and not is_there(name)]
    assert not missing


@pytest.mark.parametrize("module, draw, name", [("pictures_dag", "dag", "pipeline"), ("pictures", "order", "order")])
def test_is_current(module, draw, name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    sys.modules.pop(module, None)  # pytest may know docs/pictures, the folder, by this name
    drawn = getattr(__import__(module), draw)()
    assert drawn == (PICTURES / f"{name}.svg").read_text(), "run `make pictures`"


def test_all_are_small_and_shown():
    sizes = {file.name: file.stat().st_size for file in PICTURES.iterdir()}
    pages = "".join(page.read_text() for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    assert sizes.pop("quickstart.webp") < 1_000_000  # it moves
    assert max(sizes.values()) < 150_000 and not [name for name in sizes if f"pictures/{name}" not in pages]
