"""Each component hands a stage's function what it takes: they are named by strings, which no type checker reads."""

import importlib
import inspect
from types import SimpleNamespace

import pytest

from must.runtime import supervise
from must.runtime.notes import Facts
from must_components import components

CASES = [
    *((name, {}) for name in ("inputs", "shard", "shard_part", "classifier", "champion", "train")),
    ("train", {"nodes": {"runtime": "must"}}),
    *((name, {}) for name in ("evaluate", "gate", "export", "promote", "label", "label_model")),
]


class CalledError(Exception):
    pass


def test_every_stage_is_a_case():
    own = {name for name, value in vars(components).items() if hasattr(value, "python_func")}
    assert own == {name for name, _ in CASES} | {"summary", "close"}, "those two have no function of their own"


@pytest.mark.parametrize("name, given", CASES, ids=str)
def test_the_function_takes_these_arguments(name, given, monkeypatch):
    def bind(stage, function, run_id, work_uri, /, **values):
        module, function_name = function.split(":")
        signature = inspect.signature(getattr(importlib.import_module(module), function_name))
        signature.bind(Facts(), work_uri=work_uri, **values)
        raise CalledError

    monkeypatch.setattr(supervise, "supervised", bind)
    component = getattr(components, name).python_func
    artifact = SimpleNamespace(path="artifact", metadata={})
    parameters = inspect.signature(component).parameters.items()
    needed = {key: str(one.annotation) for key, one in parameters if one.default is inspect.Parameter.empty}
    arguments = {key: artifact if "dsl" in kind or "kfp" in kind else "x" for key, kind in needed.items()}
    with pytest.raises(CalledError):
        component(**arguments | ({"part": "1/2"} if "part" in needed else {}), **given)
