"""The Kubeflow components, made from the rows of must/table.py: COMPONENTS["shard"] is one.

All share `work_uri` and `run_id`; `index_sha256` names the shards. None is answered from Kubeflow's cache: what it
reads may change, and what it wrote may be gone. cluster.yaml's registry, tag and digests replace the images when the
pipeline is compiled."""

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

from kfp import dsl

from must import __version__, table
from must.table import Pod

NO_DEFAULT = inspect.Parameter.empty
EXECUTOR_INPUT = "{{$}}"  # Kubeflow replaces it with the parameters' values and the artifacts' places, in JSON


def make_component(name: str) -> Any:
    """The component of a row: an image, a command (must_components/run.py), and its function's interface."""
    pod = table.COMPONENTS[name]
    function = table.import_name(pod.function)

    def describe(*_: Any) -> dsl.ContainerSpec:
        command = ["python3", "-m", "must_components.run"]
        return dsl.ContainerSpec(f"{pod.image}:{__version__}", command, [name, EXECUTOR_INPUT])

    describe.__name__ = (pod.title or name).replace("-", "_")
    describe.__doc__ = inspect.getdoc(function)
    if pod.takes:
        text, args, more = str(describe.__doc__).partition("Args:\n")
        separator = "" if args else "\n\n"
        describe.__doc__ = f"{text}{separator}{describe_fields(table.import_name(pod.takes))}\n{more}"
    declare(describe, list_interface(pod, function))
    return dsl.container_component(describe)


def declare(function: Any, interface: Iterable[inspect.Parameter]) -> None:
    """Gives a function the interface that kfp reads: parameters without a default come first."""
    ordered = sorted(interface, key=lambda one: one.default is not NO_DEFAULT)  # stable
    function.__signature__ = inspect.Signature(ordered)


def list_interface(pod: Pod, function: Any) -> Iterator[inspect.Parameter]:
    """The parameters and artifacts of a component."""
    kinds: dict[str, Any] = {"work_uri": str, "run_id": str} if pod.supervised else {}
    kinds |= {name: dsl.Input[getattr(dsl, kind)] for name, kind in pod.reads.items()}
    kinds |= {name: dsl.Output[getattr(dsl, kind)] for name, kind in {**pod.writes, **pod.shows}.items()}
    kinds |= {name: dsl.OutputPath(kind) for name, kind in pod.returns.items()}
    for name, kind in kinds.items():
        yield inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind)
    for source in filter(None, (table.import_name(pod.takes) if pod.takes else None, function)):
        for one in list_parameters(source):
            if one.name not in kinds and one.name != "facts":  # of the supervisor
                yield one


def list_parameters(source: Any) -> Iterator[inspect.Parameter]:
    """Those of a function or a dataclass, with Kubeflow's types."""
    hints = get_type_hints(source)
    for one in inspect.signature(source).parameters.values():
        if one.kind == inspect.Parameter.VAR_KEYWORD:
            continue
        kind, default = find_kind(hints[one.name]), one.default
        if default is not NO_DEFAULT and not isinstance(default, kind):
            default = {} if kind is dict else None  # None: the stage has its own
        yield inspect.Parameter(one.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind)


def describe_fields(parameters: Any) -> str:
    """The section of a docstring, as kfp reads it, about a dataclass's fields."""
    return "\n".join(
        ["Args:", *(f"    {one.name}: {' '.join(one.metadata['help'].split())}" for one in fields(parameters))]
    )


def find_kind(hint: Any) -> Any:
    """A parameter's type in Kubeflow: text for what has none there, as on a command line."""
    (*_, hint) = [one for one in (hint, *get_args(hint)) if get_origin(one) is dict] or [hint]
    kind = get_origin(hint) or hint
    return kind if kind in (str, int, float, bool, dict) else str


COMPONENTS = {name: make_component(name) for name in table.COMPONENTS}
