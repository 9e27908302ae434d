"""A stage's parameters: declared, read from flags and YAML, converted and refused."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import math
import os
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from must.base.text import brief, did_you_mean, printable

Config = TypeVar("Config", bound="StageConfig")


MOST_USED = "most used"  # the heading that a stage's help begins with


def param(
    help: str,
    default: Any = MISSING,
    factory: Any = MISSING,
    metavar: str | None = None,
    positional: bool = False,
    group: str = "",
    often: bool = False,
    bare: bool = False,
) -> Any:
    """A field of a stage: its help text and, unless it is required, its default.

    Args:
        group: the heading in the stage's help under which this field and those after it stand, up to the next one.
        often: stands under MOST_USED instead, above all others.
        bare: a flag whose value may also be given without it.
    """
    metadata = {
        "help": help,
        "metavar": metavar,
        "positional": positional,
        "group": group,
        "often": often,
        "bare": bare,
    }
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class StageConfig:
    """Base of the stages' parameters. Subclasses give a command line as an `example`.

    A subclass whose defaults may depend on its values names a `resolver`, "module:function": given the values that were
    passed, it returns others, which count in place of the defaults. What was passed counts most, the default's own
    value included. It is imported when it is needed, as the functions of `must.api.stages` are.
    """

    example: ClassVar[str] = ""
    resolver: ClassVar[str] = ""
    given: ClassVar[frozenset[str]] = frozenset()  # of an instance: the names that were passed

    def __new__(cls, **values: Any) -> StageConfig:
        config = super().__new__(cls)
        config.__dict__["given"] = frozenset(values)
        return config

    def __post_init__(self) -> None:
        self.convert_values()
        self.check_values()  # what is wrong with the values is said before a resolver looks for files
        if self.resolver and len(self.given) < len(fields(self)):
            module, function = self.resolver.split(":")
            passed = {name: getattr(self, name) for name in sorted(self.given)}
            for name, value in getattr(importlib.import_module(module), function)(passed).items():
                if name not in self.given:
                    setattr(self, name, value)
            self.convert_values()
            self.check_values()

    @classmethod
    def load(cls: type[Config], file: str | None = None, **values: Any) -> Config:
        """The parameters in a YAML `file`, with `values` over them. Raises ValueError as `load` below does."""
        return load(cls, values, file)

    def convert_values(self) -> None:
        files = {f.name for f in fields(self) if f.metadata["positional"]}  # whose names may hold commas
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is not ClassVar:
                value = getattr(self, name)
                one = name in files and get_origin(kind) is list and isinstance(value, str) and value
                value = [value] if one else value
                setattr(self, name, convert(value, kind, flag(name)))

    def check_values(self) -> None:
        """Raises ValueError for values that make no sense together."""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def load(
    stage: type[Config], flags: dict[str, Any], file: str | None = None, preset: dict[str, Any] | None = None
) -> Config:
    """A stage's parameters from flags over the YAML `file` over `preset` over the defaults.

    Raises:
        ValueError: an unknown key (the nearest known name is given), a value of the wrong type, a required one missing.
    """
    values = dict(preset or {})
    if file:
        values |= read_yaml(stage, file)
    values |= flags
    check_names(stage, values, "parameters")
    missing = [flag(f.name) for f in fields(stage) if f.name not in values and is_required(f)]
    require(not missing, f"missing: {', '.join(missing)}")
    return stage(**values)


def read_yaml(stage: type[StageConfig], file: str) -> dict[str, Any]:
    content = read_mapping(Path(file), f"--config {file}")
    values = {str(name).replace("-", "_"): value for name, value in content.items()}
    check_names(stage, values, f"--config {file}")
    return values


def read_mapping(path: Path, where: str) -> dict[str, Any]:
    """The 'name: value' lines of a YAML file. Raises ValueError, which begins with `where`: it has something else."""
    try:
        content = parse_yaml(path.read_bytes(), where) or {}
    except OSError as error:
        raise ValueError(f"{where}: cannot be read: {error.strerror}") from None
    require(isinstance(content, dict), f"{where}: expected 'name: value' lines")
    return content


class OnceLoader(yaml.SafeLoader):
    """PyYAML's safe loader, to which a name that stands twice in one mapping is an error: the last would win."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)  # before merges ("<<"), which may override
        seen: dict[tuple[str, str], int] = {}
        for name in (name for name, _ in node.value if isinstance(name, yaml.ScalarNode)):
            key, line = (name.tag, name.value), name.start_mark.line + 1
            if key in seen:
                raise yaml.YAMLError(f"{brief(name.value)} stands in line {seen[key]} and again in line {line}")
            seen[key] = line
        return node


def parse_yaml(data: bytes, where: str) -> Any:
    """What a YAML file says. Raises ValueError, which begins with `where`: no YAML, no UTF-8, or a name twice."""
    try:
        return yaml.load(data.decode(), Loader=OnceLoader)
    except Exception as error:  # PyYAML raises many things for a number or date that is none
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{where}: no valid YAML: {printable(text, 300)}") from None


def check_names(stage: type[StageConfig], values: dict[str, Any], where: str) -> None:
    known = [f.name for f in fields(stage)]
    for name in values:
        if name not in known:
            raise ValueError(f"{where}: unknown name {brief(name)}; {did_you_mean(name, known)}")


def convert(value: Any, kind: Any, name: str) -> Any:
    """`value` (a string from the command line, or a YAML value) as `kind`.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, os.PathLike):
        value = [os.fspath(value)] if get_origin(kind) is list else os.fspath(value)
    origin = get_origin(kind)
    if origin is Literal:
        require(value in get_args(kind), f"{name}: {brief(value)} is none of {', '.join(map(str, get_args(kind)))}")
        return value
    if origin in (Union, UnionType):
        return convert_either(value, get_args(kind), name)
    if origin is list:
        items = [part for part in value.split(",") if part] if isinstance(value, str) else value
        require(isinstance(items, list | tuple), f"{name}: expected a list, got {brief(value)}")
        return [convert(item, get_args(kind)[0], name) for item in items]
    if origin is dict:
        if isinstance(value, str):
            pairs = [part.split("=", 1) for part in value.split(",") if part]
            require(all(len(pair) == 2 for pair in pairs), f"{name}: expected NAME=VALUE,..., got {brief(value)}")
            value = {key.strip(): item for key, item in pairs}
        require(isinstance(value, dict), f"{name}: expected NAME=VALUE pairs, got {brief(value)}")
        return {str(key): convert(item, get_args(kind)[1], name) for key, item in value.items()}
    if kind is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
        require(isinstance(value, bool), f"{name}: expected true or false, got {brief(value)}")
        return value
    assert kind in (str, int, float), kind
    expected = {str: "text", int: "a whole number", float: "a number"}[kind]
    wrong = f"{name}: expected {expected}, got {brief(value)}"
    require(isinstance(value, str | int | float) and not isinstance(value, bool), wrong)
    require(kind is not int or not isinstance(value, float) or value.is_integer(), wrong)
    try:
        converted = kind(value)
    except (ValueError, OverflowError):  # no number, or too long a one
        raise ValueError(wrong) from None
    require(kind is not float or math.isfinite(converted), wrong)
    require(kind is not int or abs(converted) < 1 << 63, wrong)
    return converted


def convert_either(value: Any, kinds: tuple[Any, ...], name: str) -> Any:
    """For kinds such as int | Literal["auto"]: one of the words, or the other kind; for str | list[str]: a list if it
    is one."""
    if any(get_origin(kind) is list for kind in kinds):
        listed = isinstance(value, list | tuple)
        return convert(value, next(kind for kind in kinds if (get_origin(kind) is list) == listed), name)
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    if value in words:
        return value
    try:
        return convert(value, next(kind for kind in kinds if get_origin(kind) is not Literal), name)
    except ValueError as error:
        raise ValueError(f"{error}, which is not {' or '.join(words)} either") from None


def add_hidden_flags(parser: argparse.ArgumentParser, stage: type[StageConfig], prefix: str) -> None:
    """A flag for each of another stage's parameters, unless there is one of that name; what is given is PREFIXNAME."""
    hints, taken = get_type_hints(stage), parser._option_string_actions
    for parameter in fields(stage):
        if flag(parameter.name) not in taken:
            kind: Any = {"action": argparse.BooleanOptionalAction} if hints[parameter.name] is bool else {}
            parser.add_argument(
                flag(parameter.name),
                dest=prefix + parameter.name,
                default=argparse.SUPPRESS,
                help=argparse.SUPPRESS,
                **kind,
            )


def add_flags(parser: argparse.ArgumentParser, stage: type[StageConfig]) -> None:
    """One flag for each parameter, under the stage's headings if it has any.

    A flag that is not given leaves no trace in the parsed namespace.
    """
    hints = get_type_hints(stage)
    groups: dict[str, argparse._ActionsContainer] = {"": parser}
    for title, parameter in with_headings(stage):
        target = groups[title] if title in groups else groups.setdefault(title, parser.add_argument_group(title))
        kind = hints[parameter.name]
        required = is_required(parameter)
        default = parameter.default if parameter.default is not MISSING else None
        if parameter.default_factory is not MISSING:
            default = format_value(parameter.default_factory())
        text = parameter.metadata["help"].replace("%", "%%")
        text += " [required]" if required else f" [{default}]" if default not in ("", None) else ""
        options: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS, "dest": parameter.name}
        if parameter.metadata["positional"]:
            del options["dest"]
            several = get_origin(kind) is list
            nargs = ("+" if required else "*") if several else None if required else "?"
            target.add_argument(parameter.name, nargs=nargs, metavar=parameter.metadata["metavar"], **options)
        elif kind is bool:
            target.add_argument(flag(parameter.name), action=argparse.BooleanOptionalAction, **options)
        else:
            if parameter.metadata["bare"]:
                target.add_argument(
                    parameter.name, nargs="?", action=Once, default=argparse.SUPPRESS, help=argparse.SUPPRESS
                )
                options["action"] = Once
            metavar = "|".join(get_args(kind)) if get_origin(kind) is Literal else parameter.metadata["metavar"] or "X"
            target.add_argument(flag(parameter.name), metavar=metavar, **options)


class Once(argparse.Action):
    """Stores a value, and refuses a second one."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        if hasattr(namespace, self.dest):
            parser.error(f"{flag(self.dest)}: is given twice, {getattr(namespace, self.dest)} and {values}")
        setattr(namespace, self.dest, values)


def with_headings(stage: type[StageConfig]) -> list[tuple[str, dataclasses.Field]]:
    """The stage's fields with the heading of each ('': it has none), those of MOST_USED first."""
    title, found = "", list[tuple[str, dataclasses.Field]]()
    for parameter in fields(stage):
        title = parameter.metadata["group"] or title
        found.append((MOST_USED if parameter.metadata["often"] else title, parameter))
    return sorted(found, key=lambda one: one[0] != MOST_USED)


def usage_of(stage: type[StageConfig]) -> str:
    """What must be given, for the first line of the help, which argparse fills with every flag there is."""
    words = []
    for parameter in fields(stage):
        metavar, positional = parameter.metadata["metavar"] or "X", parameter.metadata["positional"]
        if is_required(parameter):
            words.append(f"{metavar} [{metavar} ...]" if positional else f"{flag(parameter.name)} {metavar}")
    return " ".join(["%(prog)s", *words, "[options]"])


def is_required(parameter: dataclasses.Field) -> bool:
    return parameter.default is MISSING and parameter.default_factory is MISSING


def format_value(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={item:g}" for key, item in value.items())
    return ",".join(f"{item}" for item in value)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def require(condition: bool, message: str) -> None:
    """Raises ValueError(message), the error of a user's input, unless `condition` holds."""
    if not condition:
        raise ValueError(message)
