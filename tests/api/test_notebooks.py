"""The notebooks in docs/notebooks, executed as a reader executes them."""

import re

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from must.api.demo import find_assets
from tests.common import ROOT

FOLDER = ROOT / "docs" / "notebooks"


def executed(name, folder, **parameters):
    """What the notebook printed, and its pages of HTML, after its cells ran in `folder` with these parameters."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    (number,) = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    lines = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    notebook.cells.insert(number + 1, nbformat.v4.new_code_cell(lines))
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pages = [output.data.get("text/html", "") for output in outputs if output.output_type == "execute_result"]
    return "".join(output.text for output in outputs if output.output_type == "stream"), "".join(pages)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_committed_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(not cell.outputs and cell.execution_count is None for cell in code)
    for cell in code:
        compile(cell.source, path.name, "exec")
        assert '"/' not in cell.source and "'/" not in cell.source, "an absolute path"


@pytest.mark.slow
def test_digits(tmp_path):
    text, pages = executed("digits", tmp_path)
    before, after = re.findall(r"zero-shot (.*?)%?, adapted (.*?)%? of ", text)[-1]
    assert float(after) > float(before) + 10 and "is called" in text and "<iframe" in pages


@pytest.mark.slow
def test_photographs(tmp_path):
    chance = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(24):
        pixels = chance.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 60)).save(tmp_path / "pictures" / f"{number}.jpg")
    text, pages = executed(
        "photographs", tmp_path, images="pictures", classes=["zero", "one"], output="run", model=str(find_assets()),
        pretrained="", settings={"epochs": 1, "workers": 0, "device": "cpu"},
    )  # fmt: skip
    assert re.search(r"^alpha [01]", text, re.MULTILINE) and "<iframe" in pages
    assert (tmp_path / "run" / "onnx" / "model.onnx").exists()
