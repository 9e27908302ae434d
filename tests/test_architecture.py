"""The house's rules: which room may use which, and how small components stay."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.stages import STAGES

ROOT = Path(__file__).parent.parent
COMPONENTS = [ROOT / f"components/{stage}.py" for stage in STAGES] + [ROOT / "components/train_job/component.py"]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", sorted((ROOT / "must").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_library_knows_nothing_of_the_platform(path):
    assert not {name.split(".")[0] for name in imports(path)} & {
        "kfp",
        "kubernetes",
        "kubeflow",
        "components",
        "pipeline",
    }


@pytest.mark.parametrize("path", COMPONENTS, ids=lambda path: path.stem)
def test_components_stay_thin(path):
    (function,) = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    body = function.body[1:]  # without the docstring
    assert body[-1].end_lineno - body[0].lineno < 20


@pytest.mark.parametrize(
    "module",
    [
        "must.data.shard",
        "must.export.predict",
        "must.cli",
        "must.exits",
        "must.stages",
        "must.run.cards",
        "must.run.summary",
        "must.run.inputs",
        "must.run.supervise",
        "must.run.stages",
    ],
)
def test_what_runs_without_torch_does_not_import_it(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
