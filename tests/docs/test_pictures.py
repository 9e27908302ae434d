"""The pictures that need no training are what `make pictures` would draw now; all are small."""

import sys

import pytest

from tests.docs.blocks import ROOT

PICTURES = ROOT / "docs" / "pictures"


@pytest.mark.parametrize(
    "module, function, name", [("pictures_dag", "dag", "pipeline"), ("pictures", "order", "order")]
)
def test_is_current(module, function, name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    sys.modules.pop(module, None)  # pytest may know docs/pictures, the folder, by this name
    drawn = getattr(__import__(module), function)()
    assert drawn == (PICTURES / f"{name}.svg").read_text(), "run `make pictures`"


def test_all_are_small_and_shown():
    sizes = {file.name: file.stat().st_size for file in PICTURES.iterdir()}
    pages = "".join(page.read_text() for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    assert max(sizes.values()) < 150_000 and not [name for name in sizes if f"pictures/{name}" not in pages]
