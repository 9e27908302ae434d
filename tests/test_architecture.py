"""Which parts of must/ may import which, and what runs without torch."""

import ast
import sys
from functools import cache
from graphlib import TopologicalSorter

import pytest

from tests.common import ROOT, printed

# The packages of must/, lowest first. A package imports only those named on its line, which are listed before it. Lazy
# imports, and those for type checkers, count as well.
PLAN = """
base
config      base
data        base config
answers     base config
model       base config data answers
memory      base config data answers model
training    base config data model memory
evaluation  base config data answers model memory
prediction  base config data model evaluation
exporting   base config data model evaluation prediction
registry    base config model evaluation prediction
serving     base config data prediction registry
reviewing   base config data answers model memory serving
api         base config data answers model training evaluation prediction exporting registry
pods        base config data answers model training evaluation prediction registry api
"""
# The same inside a package, for its units: its subpackages and modules. A package that is not listed has no such order.
UNIT_PLANS = {
    "base": """
text
errors
console
processes   console errors
storage     errors processes text
lock        errors processes storage
program     console errors lock processes text
parameters  errors text
""",
    "data": """
image
format      image
sources     image
shards      format image sources
augment     image
reader      format
loader      augment format image reader
""",
    "api": """
results
run         results
demo        run
inputs
work_state
sort
model       inputs results run
adapt       inputs model run work_state
cli         run
""",
}


def table(plan):
    return {line.split()[0]: set(line.split()[1:]) for line in plan.strip().splitlines()}


PACKAGES = table(PLAN)
UNITS = {package: table(plan) for package, plan in UNIT_PLANS.items()}
NO_TORCH = (  # not in any function either
    "data.shards", "prediction.onnx_model", "prediction.stream", "prediction.images", "serving", "evaluation.gate",
    "answers", "model.description",
)  # fmt: skip


def find_modules(home, package):
    """Module -> its file."""
    found = {}
    for path in sorted((home / package).rglob("*.py")):
        parts = path.relative_to(home).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = find_modules(ROOT, "must")
WHEEL = ("must", "must_components", "must_pipeline")  # each imports only those before it
EVERY = MODULES | find_modules(ROOT / "components", WHEEL[1]) | find_modules(ROOT / "pipeline", WHEEL[2])


def imports(path):
    """Names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for name in (f"{node.module}.{alias.name}" for alias in node.names):
                yield name if name in EVERY else node.module


@cache
def graph():
    return {module: {name for name in imports(path) if name != module} for module, path in EVERY.items()}


def package_of(module):
    return module.split(".")[1]


def unit_of(module):
    """The unit of its package that a module is in; the package's `__init__` is in none."""
    return [*module.split("."), ""][2]


FRONT = {"must", "must.__main__", "must.table"}  # the module itself, its program, and the table


def dependencies():
    """(importing module, imported module), but for those of FRONT."""
    for module in MODULES.keys() - FRONT:
        for name in graph()[module] & MODULES.keys() - FRONT:
            yield module, name


def reachable(module):
    seen, ahead = set(), {module}
    while ahead:
        seen |= ahead
        ahead = {name for one in ahead for name in graph().get(one, ())} - seen
    return seen


def only_down(plan):
    above = set()
    for name, below in plan.items():
        assert below <= above, f"{name} imports {below - above}, which are listed after it"
        above.add(name)


def test_the_plan_lists_every_package_and_imports_go_down():
    assert PACKAGES.keys() == {package_of(module) for module in MODULES.keys() - FRONT}
    assert len([path for path in (ROOT / "must").iterdir() if path.name != "__pycache__"]) <= 20
    only_down(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_what_the_plan_allows(package):
    found = [(a, b) for a, b in dependencies() if package_of(a) == package != package_of(b)]
    assert not [f"{a} -> {b}" for a, b in found if package_of(b) not in PACKAGES[package]]
    assert PACKAGES[package] == {package_of(b) for _, b in found}, "the plan allows more than is used"


@pytest.mark.parametrize("package", UNITS)
def test_the_units_of_a_package_import_what_its_plan_allows(package):
    units = UNITS[package]
    assert units.keys() == {unit_of(module) for module in MODULES if module.startswith(f"must.{package}.")}
    only_down(units)
    inside = [(a, b) for a, b in dependencies() if package_of(a) == package_of(b) == package]
    found = [(a, b) for a, b in inside if unit_of(a) != unit_of(b)]
    assert not [f"{a} -> {b}" for a, b in found if unit_of(b) not in units[unit_of(a)]]
    used = {unit: {unit_of(b) for a, b in found if unit_of(a) == unit} for unit in units}
    assert units == used, "the plan allows more than is used"


def test_the_table_of_stages_imports_nothing_of_must():
    code = "import sys, must; print(*sorted(name for name in sys.modules if name.startswith('must')))"
    assert printed(sys.executable, "-c", code, cwd=ROOT).split() == [
        "must",
        "must.base",
        "must.base.errors",
        "must.table",
    ]


def test_no_cycle_between_modules():
    TopologicalSorter({module: names & EVERY.keys() for module, names in graph().items()}).prepare()


@pytest.mark.parametrize("part", NO_TORCH)
def test_torch_is_out_of_reach(part):
    for module in MODULES:
        if f"{module}.".startswith(f"must.{part}."):
            heavy = {name.split(".")[0] for name in reachable(module)} & {"torch", "torchvision", "timm", "open_clip"}
            assert not heavy, module


def test_the_library_does_not_import_the_platform():
    platform = {"kfp", "kfp_server_api", "kubernetes", "kubeflow"}
    found = [(module, name) for module in MODULES for name in graph()[module] if name.split(".")[0] in platform]
    assert not found


def test_the_library_the_components_and_the_pipeline_import_downwards():
    ranks = {package: rank for rank, package in enumerate(WHEEL)}
    found = [(module, name) for module, names in graph().items() for name in names]
    up = [(a, b) for a, b in found if ranks.get(b.split(".")[0], -1) > ranks[a.split(".")[0]]]
    assert len(EVERY) > len(MODULES) and not up


def test_a_package_has_a_docstring():
    packages = [path for path in MODULES.values() if path.name == "__init__.py"]
    assert packages and not [path for path in packages if not ast.get_docstring(ast.parse(path.read_text()))]


def test_what_runs_without_torch_does_not_import_it():
    modules = """
        api.cli base.program api.run data.shards.build data.format prediction.predict evaluation.gate
        registry.promote pods.check pods.stages pods.summary pods.supervise pods.training serving.serve
    """
    code = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    code += "    'torch' in sys.modules and sys.exit(f'{name} imports torch')"
    printed(sys.executable, "-c", code, *[f"must.{name}" for name in modules.split()], cwd=ROOT)
