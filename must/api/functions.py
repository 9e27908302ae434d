"""Makes the stages' Python functions from the table of stages; parameters give signature and docstring."""

import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_type_hints

from must.api.results import RESULTS, Predicted, make_result
from must.api.stages import STAGES, Stage, configure, run
from must.base.errors import TransientError
from must.base.parameters import get_default, is_required, naming_parameters, with_headings

ENDING = """
Raises:
    must.UserError: the input is wrong, in one line; must.TransientError: the same call may work later. Both are
        ValueErrors.
    OSError: a path that cannot be read or written."""

ERRORS = ("MustError", "TransientError", "UserError")  # classes at `must`, of base/errors
NOT_STAGES = {"load": "must.api.model:load"}  # functions at `must` that are not stages
PYTHON_FUNCTIONS = NOT_STAGES | {name: stage.python for name, stage in STAGES.items() if stage.python}  # not generated


def function_at_must(name: str) -> Callable[..., Any]:
    """`must.NAME`."""
    if name in PYTHON_FUNCTIONS:
        module, function_name = PYTHON_FUNCTIONS[name].split(":")
        return getattr(importlib.import_module(module), function_name)
    stage = STAGES[name]

    def function(**values: Any) -> Any:
        return run_stage(name, {key: value for key, value in values.items() if value is not None})

    function.__name__ = function.__qualname__ = name
    function.__module__ = "must"  # where it is imported from, by pickle too
    function.__doc__ = docstring(stage)
    function.__signature__ = signature(name, stage)  # type: ignore[attr-defined]
    return function


@naming_parameters()
def run_stage(name: str, values: dict[str, Any]) -> Any:
    """Runs a stage of the table in this thread. Handles no signals."""
    config = configure(name, values)
    predictions: list[Any] = []
    with resumable(name):
        if name != "predict":
            return make_result(config, run(name, config))
        counts = run(name, config, **({} if values.get("output") else {"take": predictions.append}))
        return Predicted(predictions, counts["images"], counts["unreadable"])


@contextmanager
def resumable(name: str) -> Iterator[None]:
    """A SystemExit, of training that is stopped, becomes a TransientError."""
    try:
        yield
    except SystemExit as stopped:
        reason = getattr(stopped, "reason", "stopped")
        raise TransientError(f"{reason}; call must.{name} again with the same parameters to go on") from stopped


def signature(name: str, stage: Stage) -> inspect.Signature:
    """Keyword parameters: the required ones first, then the most used."""
    hints = get_type_hints(stage.config)
    fields = sorted((field for _, field in with_headings(stage.config)), key=lambda field: not is_required(field))
    parameters = []
    for field in fields:
        default = inspect.Parameter.empty if is_required(field) else get_default(field)
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(field.name, kind, default=default, annotation=hints[field.name]))
    return inspect.Signature(parameters, return_annotation=RESULTS.get(name, Any))


def docstring(stage: Stage) -> str:
    """The stage's help, its parameters under their headings, and the errors."""
    groups: dict[str, list[str]] = {}
    for heading, field in with_headings(stage.config):
        text = f"{field.name}: {as_python(field.metadata['help'])}"
        lines = groups.setdefault(heading, [f"    {heading}:"] if heading else [])
        lines += textwrap.wrap(text, 110, initial_indent="    ", subsequent_indent=" " * 8)
    blocks = "\n\n".join(map("\n".join, groups.values()))
    return f"{as_python(stage.help)}\n\nArgs:\n{blocks}\n{ENDING}"


def as_python(text: str) -> str:
    """A help text with --flag-names replaced by the names of the parameters."""

    def parameter(match: re.Match[str]) -> str:
        name = match[2].replace("-", "_")
        return f"{name}=False" if match[1] else name

    return re.sub(r"--(no-)?([a-z][a-z-]*)", parameter, text)
