"""`must-pipeline shelf`: the folder for kubeflow/pipelines-components, by the rules that its CI checks (at fab64a9)."""

import ast
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
import yaml
from kfp.compiler import Compiler

import must_components
from must import __version__
from must_pipeline import shelf

NAMES = ["classifier", "evaluate", "export", "shard", "train"]
FILES = {"__init__.py", "component.py", "metadata.yaml", "README.md", "OWNERS"}
FIELDS = ["name", "stability", "dependencies", "lastVerified"]  # theirs, in this order; others may stand between
BESIDE_STDLIB = {"kfp", "pytest"}  # what may be imported at a file's top
IMAGES = re.compile(r"ghcr\.io/kubeflow/.*|python:\d+\.\d+.*")
RUFF = [sys.executable, "-m", "ruff"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines-components")
    shelf.build(folder, ["one-of-theirs", "another"], datetime.now(UTC).date())
    return folder


@pytest.fixture(scope="module")
def place(checkout):
    return checkout / shelf.PLACE


def load(file):
    spec = importlib.util.spec_from_file_location(f"shelf_{file.parent.name}_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def function_in(text):
    (function,) = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    return function


def test_the_folder_holds_what_is_required_and_nothing_else(place):
    assert sorted(path.name for path in place.iterdir()) == ["OWNERS", "README.md", "__init__.py", *NAMES]
    for name in NAMES:
        assert {path.name for path in (place / name).iterdir()} - {"tests", "example_pipelines.py"} == FILES
        assert (place / name / "tests/__init__.py").exists() and (
            place / name / "tests/test_component_unit.py"
        ).exists()


@pytest.mark.parametrize("name", NAMES)
def test_metadata_and_owners_are_as_their_schema_has_them(place, name):
    text = (place / name / "metadata.yaml").read_text()
    metadata = yaml.safe_load(text)
    assert text.startswith("---\n") and [field for field in metadata if field in FIELDS] == FIELDS
    assert metadata.keys() - FIELDS <= {"tags", "ci", "links"} and all(isinstance(t, str) for t in metadata["tags"])
    assert metadata["stability"] in ("experimental", "alpha", "beta", "stable")
    (kubeflow,) = metadata["dependencies"]["kubeflow"]
    assert kubeflow["name"] == "Pipelines" and re.fullmatch(r"(>=|<=|==)\d+\.\d+\.\d+", kubeflow["version"])
    verified = metadata["lastVerified"]
    assert isinstance(verified, datetime) and abs((datetime.now(UTC) - verified).days) < 365
    for owners in (place / "OWNERS", place / name / "OWNERS"):
        assert owners.read_text().splitlines()[:2] == ["approvers:", "  - one-of-theirs"]


def test_at_the_top_of_a_file_only_what_every_python_has_is_imported(place):
    for file in place.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            strangers = {name.split(".")[0] for name in names} - sys.stdlib_module_names - BESIDE_STDLIB
            assert not strangers, file


@pytest.mark.parametrize("name", NAMES)
def test_a_component_is_ours_on_an_image_that_they_allow(place, name, tmp_path):
    text = (place / name / "component.py").read_text()
    ours = (Path(inspect.getfile(must_components)).parent / f"{name}.py").read_text()
    mine, theirs = function_in(ours), function_in(text)
    mine.decorator_list = theirs.decorator_list = []
    assert ast.dump(mine) == ast.dump(theirs)
    Compiler().compile(getattr(load(place / name / "component.py"), name), str(tmp_path / "c.yaml"))
    (executor,) = yaml.safe_load((tmp_path / "c.yaml").read_text())["deploymentSpec"]["executors"].values()
    assert IMAGES.fullmatch(executor["container"]["image"])
    assert f"must-clip[{shelf.EXTRAS[name]}]=={__version__}" in "".join(executor["container"]["command"])


@pytest.mark.parametrize("name", NAMES)
def test_a_readme_tells_each_parameter_and_who_owns_it(place, name):
    text = (place / name / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \| `(.+)` \| (.+) \|$", text, re.MULTILINE)
    function = function_in((place / name / "component.py").read_text())
    assert [row[0] for row in rows] == [argument.arg for argument in function.args.args]
    assert text.startswith(f"# Must Clip {name.capitalize()} ✨\n") and "\n    - another\n" in text
    assert not re.search(r"[ \t]$", text, re.MULTILINE) and text.endswith("- another\n")
    index = (place / "README.md").read_text()
    assert (
        f"- [Must Clip {name.capitalize()}](./{name}/README.md): {ast.get_docstring(function).split(chr(10))[0]}"
        in index
    )


def test_their_linter_and_formatter_have_nothing_to_say(place):
    rules = ["--isolated", "--line-length", "120", "--target-version", "py311", "--no-cache"]
    chosen = ["--select", "E,W,F,I,D", "--ignore", "D100,D104,D415", "--config", "lint.pydocstyle.convention='google'"]
    for command in (["check", *rules, *chosen], ["format", "--check", *rules]):
        files = sorted(map(str, place.rglob("*.py")))
        done = subprocess.run([*RUFF, *command, *files], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_folder_s_own_tests_pass(checkout):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
    command.append(str(checkout / shelf.PLACE / "shard"))
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and " skipped" not in done.stdout, done.stdout


@pytest.mark.slow
def test_the_example_compiles(checkout, tmp_path):
    """As there: the checkout is the package kfp_components."""
    (tmp_path / "kfp_components").symlink_to(checkout)
    example = checkout / shelf.PLACE / "train/example_pipelines.py"
    code = f"import runpy, sys; from kfp.compiler import Compiler; Compiler().compile(runpy.run_path({str(example)!r})"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", f"{code}['adapt'], 'e.yaml')"], cwd=tmp_path, env=environment, check=True)
    tasks = yaml.safe_load((tmp_path / "e.yaml").read_text())["root"]["dag"]["tasks"]
    assert sorted(tasks) == NAMES and tasks["export"]["dependentTasks"] == ["evaluate", "shard", "train"]


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "shelf: --approver: their rules ask for at least one"),
        (["--approver", "a b"], "shelf: --approver a b: is no GitHub name"),
        (["--approver", "a", "--verified", "yesterday"], "shelf: --verified yesterday: expected a date such as"),
        (["--approver", "a", "--verified", "2020-01-31"], "shelf: --verified 2020-01-31: their rules take a day of"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.setattr(sys, "argv", ["must-pipeline shelf", str(tmp_path / "there"), *flags])
    with pytest.raises(SystemExit, match="2"):
        shelf.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message) and not (tmp_path / "there").exists()


def test_another_source_of_the_package_can_be_named(tmp_path):
    shelf.build(tmp_path, ["a"], date.today(), "https://example.com/must_clip-1.whl")
    text = (tmp_path / shelf.PLACE / "shard/component.py").read_text()
    assert 'packages_to_install=["https://example.com/must_clip-1.whl"]' in text
