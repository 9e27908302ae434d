"""The house's plan: which room of must/ may import which, what never meets torch, and how small components stay."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from must_pipeline.stages import STAGES

ROOT = Path(__file__).parent.parent
HOME = ROOT / "components/must_components"
BESIDE = ("train_job/component.py", "custom_job.py", "shard_part.py")  # other tasks of those stages
COMPONENTS = [HOME / f"{stage}.py" for stage in STAGES] + [HOME / name for name in BESIDE]

# A room is a folder or file of must/. It imports the rooms named here and no others, and it stands above all of them:
# what a line names, a line before it is about. Lazy imports and those for type checkers count as any other.
PLAN = """
text
background
cores
progress
processes
storage     processes
exits       storage text
parameters  text
config      parameters text
tars
names       parameters storage text
lock        background storage
image       text
format      names parameters progress storage tars text
sources     parameters storage tars text
shards      config cores format image lock names parameters processes progress sources storage text
predict     config cores format image parameters processes progress sources storage text
distributed cores exits
augment     image
data        augment config format image lock processes storage text
model       config distributed image names parameters storage text
select      augment config data distributed image model parameters storage text
train       augment config data distributed exits format image lock model parameters progress select storage text
evaluate    augment config data distributed format image model parameters progress select storage text
export      augment config data image model parameters predict select storage text
infer       augment config distributed export model parameters predict storage
gate        config parameters storage
promote     config lock model names parameters storage text train
serve       config cores image parameters predict promote storage text
demo        config
preflight   config format model parameters storage
stages      config preflight image parameters
api         config gate model parameters predict promote stages storage
adapt       api augment config distributed format image model parameters predict stages storage text train
cli         distributed exits format parameters shards stages text
__main__    cli
run         background config distributed exits format gate model parameters promote stages storage text train
"""
ROOMS = {line.split()[0]: set(line.split()[1:]) for line in PLAN.strip().splitlines()}
APART = [("shards", "data"), ("shards", "augment")]  # writing shards and reading them: two houses on one ground
NO_TORCH = ("shards", "predict", "serve", "gate")  # not in any function either


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted((ROOT / "must").rglob("*.py"))}


def imports(path):
    """Names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for name in (f"{node.module}.{alias.name}" for alias in node.names):
                yield name if name in MODULES else node.module


GRAPH = {module: {name for name in imports(path) if name != module} for module, path in MODULES.items()}


def room_of(module):
    return module.split(".")[1]


def arrows():
    """(importing module, imported module) from room to room."""
    for module, names in GRAPH.items():
        for name in names & MODULES.keys() - {"must"}:
            if module != "must" and room_of(module) != room_of(name):
                yield module, name


def reachable(module):
    seen, ahead = set(), {module}
    while ahead:
        seen |= ahead
        ahead = {name for one in ahead for name in GRAPH.get(one, ())} - seen
    return seen


def test_the_plan_knows_every_room_and_has_only_arrows_down():
    assert ROOMS.keys() == {room_of(module) for module in MODULES if module != "must"}
    above = set()
    for room, below in ROOMS.items():
        assert below <= above, f"{room} imports {below - above}, which stand above it"
        above.add(room)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_the_plan_allows(room):
    strangers = [f"{a} -> {b}" for a, b in arrows() if room_of(a) == room and room_of(b) not in ROOMS[room]]
    assert not strangers
    assert ROOMS[room] == {room_of(b) for a, b in arrows() if room_of(a) == room}, "the plan allows more than is used"


def test_no_circle_between_modules():
    try:
        TopologicalSorter({module: names & MODULES.keys() for module, names in GRAPH.items()}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("one, other", APART)
def test_writing_and_reading_shards_know_nothing_of_each_other(one, other):
    for here, there in ((one, other), (other, one)):
        inside = [module for module in MODULES if module.startswith(f"must.{here}")]
        found = {name for module in inside for name in reachable(module) if name.startswith(f"must.{there}.")}
        assert inside and not found


@pytest.mark.parametrize("room", NO_TORCH)
def test_torch_is_out_of_reach(room):
    for module in MODULES:
        if room_of(f"{module}.") == room:
            heavy = {name.split(".")[0] for name in reachable(module)} & {"torch", "torchvision", "timm", "open_clip"}
            assert not heavy, module


@pytest.mark.parametrize("module", MODULES)
def test_the_library_knows_nothing_of_the_platform(module):
    outside = {name.split(".")[0] for name in GRAPH[module]}
    assert not outside & {"kfp", "kubernetes", "kubeflow", "must_components", "must_pipeline"}


@pytest.mark.parametrize("package", [path for path in MODULES.values() if path.name == "__init__.py"], ids=module_of)
def test_a_room_says_what_it_is_for(package):
    assert ast.get_docstring(ast.parse(package.read_text()))


@pytest.mark.parametrize("path", COMPONENTS, ids=lambda path: path.stem)
def test_components_stay_thin(path):
    (function,) = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    body = function.body[1:]  # without the docstring
    assert body[-1].end_lineno - body[0].lineno < 20


@pytest.mark.parametrize(
    "module",
    [
        "must.cli",
        "must.exits",
        "must.stages",
        "must.shards.build",
        "must.format.verify",
        "must.infer.predict",
        "must.predict.predict",
        "must.predict.client",
        "must.gate",
        "must.promote.champion",
        "must.run.check",
        "must.run.decision",
        "must.run.evaluation",
        "must.run.inputs",
        "must.run.stages",
        "must.run.summary",
        "must.run.supervise",
        "must.run.training",
        "must.serve.serve",
    ],
)
def test_what_runs_without_torch_does_not_import_it(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
