"""The steps of "Adding a stage" (docs/architecture.md), taken in a copy of the tree: a command, a function, a component
and a task of the DAG come of them. And those of a loss and a gate (CONTRIBUTING.md)."""

import os
import re
import shutil
import sys

import pytest

from must.evaluation.result import write_metrics
from tests.common import ROOT, printed
from tests.evaluation.measured import MEASURED

PAGE = (ROOT / "docs/architecture.md").read_text()
RECIPE = PAGE[PAGE.index("## Adding a stage") : PAGE.index("## Tests")]

NEW = {
    "must/evaluation/hello.py": """
from dataclasses import dataclass
from must.base import storage
from must.base.parameters import StageConfig, param

@dataclass(kw_only=True)
class HelloConfig(StageConfig):
    example = "must hello --name world --output hello.txt"
    name: str = param("who is greeted")
    output: str = param("file to write", metavar="FILE")

def hello(config: HelloConfig) -> None:
    storage.write_bytes(config.output, f"hello, {config.name}".encode())
""",
}
ROW = """    "hello": Stage(
        "Greet.", "must.evaluation.hello:HelloConfig", "must.evaluation.hello:hello",
        pod=Pod("must-shard", 4, "must.pods.stages:hello", writes={"output": "Artifact"}),
    ),
"""
IN_POD = """def hello(facts: Facts, work_uri: str, *, name: str, output: str) -> None:
    '''Greets.

    Args:
        name: who is greeted.'''
    run("hello", name=name, output=output)
    facts.result = f"greeted {name}"


"""
EDITS = {  # file: (before what, what)
    "must/table.py": ('    "plan": Stage(', ROW),
    "must/pods/stages.py": ("def export(", IN_POD),
    "pipeline/must_pipeline/dag.py": (
        '            classifier = add("classifier"', '            add("hello", name="world")\n'),
}  # fmt: skip
MORE = {  # the same, of a loss and a gate
    "must/training/step.py": (
        '    ImageLoss("alignment"', '    ImageLoss("new", "new_weight", lambda it, _: -it.logits.abs().mean()),\n'),
    "must/config/train.py": ("    align_weight: float", '    new_weight: float = param("of the new loss", 0.5)\n'),
    "must/evaluation/gate.py": (
        "RULES = {", """def weekday_gate(metrics: Metrics, config: GateConfig) -> Decision:
    return decide("weekday", (False, "not on Fridays"))


"""),
}  # fmt: skip
CHANGES = {
    "must/evaluation/gate.py": ('"none": no_gate}', '"none": no_gate, "weekday": weekday_gate}'),
    "must/config/evaluate.py": ('"label-free", "none"]', '"label-free", "none", "weekday"]'),
}
MADE = ("must/__init__.pyi", "pipeline/must_pipeline.yaml")
COMPONENT = """
from must_components.run import run_component

values = {"work_uri": "work", "run_id": "7", "name": "world"}
places = {"output": {"artifacts": [{"uri": "runs/hello.txt"}]}}
run_component("hello", {"inputs": {"parameterValues": values}, "outputs": {"artifacts": places}})
print("WROTE", open("runs/hello.txt").read())
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the tree, with the stage `hello` and what is made from it."""
    tree = tmp_path_factory.mktemp("tree")
    for folder in ("must", "components", "pipeline", "docs", "tests", "deploy"):
        ignored = shutil.ignore_patterns("__pycache__", "golden", "recorded", "pictures")
        shutil.copytree(ROOT / folder, tree / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tree)
    for file, text in NEW.items():
        (tree / file).write_text(f'"""Greets."""\n{text}')
    added = [(file, before, more + before) for file, (before, more) in (EDITS | MORE).items()]
    for file, before, after in [*added, *((file, *change) for file, change in CHANGES.items())]:
        text = (tree / file).read_text()
        assert text.count(before) == 1, f"{file}: {before}"
        (tree / file).write_text(text.replace(before, after))
    for command in ("pipeline/compile.py", "docs/reference.py"):
        run(tree, *command.split())
    return tree


def run(tree, *command):
    path = os.pathsep.join(map(str, (tree, tree / "components", tree / "pipeline")))
    return printed(sys.executable, *command, cwd=tree, env=os.environ | {"PYTHONPATH": path})


def test_the_recipe_names_the_files_that_are_touched():
    named = set(re.findall(r"`([\w/]+\.(?:py|pyi|yaml))`", RECIPE))
    assert {*NEW, *EDITS, *MADE} - named == {*NEW}  # "in any package"
    optional = {"must/api/results.py", "must/api/run.py", "pipeline/cluster.yaml"}
    assert named - {*NEW, *EDITS, *MADE} == optional | {
        f"tests/{name}.py" for name in ("api/test_functions", "test_architecture", "test_recipe")
    }
    assert all((ROOT / name).exists() for name in named - NEW.keys())


@pytest.mark.slow
def test_a_command_and_a_function(tree):
    run(tree, "-m", "must", "hello", "--name", "you", "--output", "hello.txt")
    assert (tree / "hello.txt").read_text() == "hello, you"
    assert "who is greeted" in run(tree, "-m", "must", "hello", "--help")
    run(tree, "-c", "import must; must.hello(name='me', output='hello.txt')")
    assert (tree / "hello.txt").read_text() == "hello, me"
    assert "def hello(" in (tree / "must/__init__.pyi").read_text()


@pytest.mark.slow
def test_a_component_that_runs_and_a_task_of_the_dag(tree):
    assert "WROTE hello, world" in run(tree, "-c", COMPONENT)
    assert '"result": "greeted world"' in (tree / "work/notes/7/hello.json").read_text()
    assert "comp-hello:" in (tree / "pipeline/must_pipeline.yaml").read_text()


LOSSES = """
import torch
from must.config import TrainConfig
from must.model.masked_vit import StudentOutput
from must.training.step import compute_losses, make_pseudo_labels

output = StudentOutput(torch.ones(2, 3), torch.zeros(2, 1, 192), torch.zeros(2, 1))
labels = make_pseudo_labels(torch.eye(3)[:2], 0.5)
for weight in (0.0, 1.0):
    config = TrainConfig(shards="-", classifier="-", output="-", new_weight=weight)
    found = compute_losses(output, labels, torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, dtype=int), config)
    print(round(found.total.item(), 3), found.values["loss_new"].item(), round(found.values["loss"].item(), 3))
"""


@pytest.mark.slow
def test_a_loss_is_in_the_total_and_in_the_log(tree):
    (total, value, logged), (more, _, more_logged) = (line.split() for line in run(tree, "-c", LOSSES).splitlines())
    assert total == logged and more == more_logged
    assert float(value) == -1 and float(more) == pytest.approx(float(total) - 1)


@pytest.mark.slow
def test_a_gate_of_the_command_and_of_kubeflows_menu(tree, tmp_path):
    write_metrics(str(tmp_path / "metrics.json"), MEASURED)
    said = run(tree, "-m", "must", "gate", "--metrics", str(tmp_path / "metrics.json"), "--gate", "weekday")
    assert "gate (weekday): stopped" in said and "STOP  not on Fridays" in said
    assert "- weekday" in (tree / "pipeline/must_pipeline.yaml").read_text()
