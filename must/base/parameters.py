"""A stage's parameters: how they are declared, read from flags and YAML, converted and checked."""

import dataclasses
import math
import operator
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from functools import cache, partial
from pathlib import Path
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from must.base.errors import MustError, UserError
from must.base.text import abbreviate, make_one_line, make_printable, suggest_name

SHA256 = re.compile(r"[0-9a-f]{64}")

Config = TypeVar("Config", bound="StageConfig")
Record = TypeVar("Record")
get_hints: Callable[[Any], dict[str, Any]] = cache(partial(get_type_hints, include_extras=True))

LARGEST_FILE = 1 << 20  # bytes of a file of parameters
MOST_USED = "most used"  # the first heading of a stage's help
COMPARISONS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


def check_bounds(value: Any, bounds: dict[str, float], name: str) -> None:
    """Refuses a number, or a number in a list, that is outside the limits."""
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, int | float):
            inside = all(COMPARISONS[word](number, limit) for word, limit in bounds.items())
            limits = " and ".join(f"{word.replace('_', ' ')} {limit}" for word, limit in bounds.items())
            require(inside, f"{name} must be {limits} (got {number:g})")


def param(
    help: str,
    default: Any = MISSING,
    factory: Any = MISSING,
    metavar: str | None = None,
    positional: bool = False,
    group: str = "",
    often: bool = False,
    bare: bool = False,
    kind: str = "",
    part: str = "",
    between: tuple[float, float] | None = None,
    **bounds: float,
) -> Any:
    """A field of a stage: its help text and, unless it is required, its default.

    Args:
        metavar: the word for the value in the help; N for an integer if it is not given.
        group: the heading in the stage's help for this field and the following ones, up to the next heading.
        often: the field is under the heading MOST_USED instead, above all others.
        bare: the value may also be given without the flag.
        kind: the kind of a file or folder that is checked before the stage begins; see must.api.run.
        part: what it is in WORK, for a stage whose `model` may be WORK: a name of PARTS (must/config/work.py), or a
            file in one, name/file; of several, with spaces between them, the first that is there; {x}: the value of x.
        between: the limits of a number, or of each number of a list, both included.
        bounds: other limits, by the words of COMPARISONS."""
    if between:
        bounds = {"at_least": between[0], "at_most": between[1]}
    metavar = "N" if metavar is None and type(default) is int else metavar
    metadata = {
        "help": help, "metavar": metavar, "positional": positional, "group": group, "often": often, "bare": bare,
        "kind": kind, "parts": part.split(), "bounds": bounds,
    }  # fmt: skip
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class StageConfig:
    """Base class of the stages' parameters: converted and checked values. Subclasses set a command line as `example`.

    `passed` is no parameter: `load` puts into it the names of the parameters that the user gave. Presets do not change
    these, even if a value equals the default. `by_preset` has the names of the parameters that presets choose, each
    with its value in the preset auto, or "" where that is computed."""

    example: ClassVar[str] = ""
    by_preset: ClassVar[dict[str, str]] = {}
    passed: frozenset[str] = field(default=frozenset(), repr=False, compare=False)

    def __post_init__(self) -> None:
        hints = get_hints(type(self))
        for parameter in list_parameters(type(self)):
            name, value = parameter.name, getattr(self, parameter.name)
            if parameter.metadata["positional"] and isinstance(value, str) and value:
                value = [value]  # one file, whose name may contain commas
            value = convert(value, hints[name], flag(name))
            check_bounds(value, parameter.metadata["bounds"], flag(name))
            setattr(self, name, value)
        self.check_values()

    def is_passed(self, name: str) -> bool:
        """Whether the user gave this parameter: it is in `passed`, or its value is not the default."""
        return name in self.passed or getattr(self, name) != get_default(type(self).__dataclass_fields__[name])

    def check_values(self) -> None:
        """Refuses values that contradict each other."""

    def to_dict(self) -> dict[str, Any]:
        """The parameters by name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "passed"}


def load(stage: type[Config], values: dict[str, Any]) -> Config:
    """A stage's parameters: `values` override the defaults."""
    check_names(stage, values, "parameters")
    missing = [field for field in list_parameters(stage) if field.name not in values and is_required(field)]
    names = [field.name if field.metadata["positional"] else flag(field.name) for field in missing]
    require(not names, f"missing: {', '.join(names)}")
    return stage(**values, passed=frozenset(values))


def read_yaml(stage: type[StageConfig], file: str) -> dict[str, Any]:
    """The values of parameters in a file of --config."""
    content = read_mapping(Path(file), f"--config {file}")
    values = {str(name).replace("-", "_"): value for name, value in content.items()}
    check_names(stage, values, f"--config {file}")
    return values


def read_mapping(path: Path, where: str) -> dict[str, Any]:
    """The 'name: value' lines of a YAML file. Raises ValueError, beginning with `where`: other content, or no file."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)  # with a limit: the file may be a pipe, or a device without an end
        require(len(data) <= LARGEST_FILE, f"{where}: more than {LARGEST_FILE} bytes")
        content = parse_yaml(data, where) or {}
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror}") from None
    require(isinstance(content, dict), f"{where}: expected 'name: value' lines")
    return content


class OnceLoader(yaml.SafeLoader):
    """PyYAML's safe loader, with an error for a name that is twice in one mapping. PyYAML itself keeps the last one."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)  # before merges ("<<") are applied, which may override names
        lines: dict[tuple[str, str], int] = {}
        for name in (name for name, _ in node.value if isinstance(name, yaml.ScalarNode)):
            key, line = (name.tag, name.value), name.start_mark.line + 1
            if key in lines:
                raise yaml.YAMLError(
                    f"{abbreviate(name.value)} is defined on line {lines[key]} and again on line {line}"
                )
            lines[key] = line
        return node


def parse_yaml(data: bytes, where: str) -> Any:
    """Parses a YAML file. Raises ValueError, beginning with `where`: no YAML, no UTF-8, or a name twice."""
    try:
        return yaml.load(data.decode(), Loader=OnceLoader)
    except UnicodeDecodeError:
        raise UserError(f"{where}: is no text in UTF-8") from None
    except Exception as error:  # PyYAML raises exceptions of many types for an invalid number or date
        raise UserError(f"{where}: not valid YAML: {make_printable(make_one_line(error), 300)}") from None


def normalize_names(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings by the names of parameters; people also write them as flags, min-gain."""
    found = dict[str, Any]()
    for name, value in (settings or {}).items():
        key = str(name).replace("-", "_")
        require(key not in found, f"{key} is given twice, as {key.replace('_', '-')} too; give it once")
        found[key] = value
    return found


def require_settings(
    stage: type[StageConfig], settings: Mapping[str, Any], where: str, fixed: Collection[str]
) -> dict[str, Any]:
    """Checks the names of a stage's `settings`, which the pipeline has under the name `where`; "-" becomes "_"."""
    values = normalize_names(settings)
    known = [f.name for f in list_parameters(stage) if f.name not in fixed]
    for name in values:
        require(name not in fixed, f"{where}.{name}: is set by the pipeline or a parameter of it; take it out")
        if name not in known:
            raise UserError(f"{where}.{name}: unknown; {suggest_name(name, known)}")
    return values


def check_settings_of(where: str, stage: type[Config], **values: Any) -> Config:
    """Checks a stage's parameters, with the placeholder "-" for required ones that are missing.
    The message of an error begins with `where`, which replaces a flag of that name; '' adds nothing."""
    placeholders = {f.name: "-" for f in list_parameters(stage) if is_required(f)}
    try:
        return stage(**placeholders | values)
    except ValueError as error:
        text, flag = str(error), f"--{where.replace('_', '-')} "
        if text.startswith(flag):
            raise UserError(f"{where} {text.removeprefix(flag)}") from None
        raise UserError(f"{where}: {text}" if where else text) from None


def check_names(stage: type[StageConfig], values: dict[str, Any], where: str) -> None:
    known = [f.name for f in list_parameters(stage)]
    for name in values:
        if name not in known:
            raise UserError(f"{where}: unknown name {abbreviate(name)}; {suggest_name(name, known)}")


def make_record(kind: type[Record], content: Any) -> Record:
    """Makes a dataclass from a JSON object, as `asdict` wrote it. Unknown names are ignored."""
    return convert(content, kind, "", strict=True)


def convert(value: Any, kind: Any, name: str, strict: bool = False) -> Any:
    """Converts `value` (a string from the command line, or a YAML value) to `kind`; `strict`, for JSON: checks it only.

    `Annotated[int, check]` is an integer for which `check(value)` raises no UserError."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or (value is None and NoneType in arguments) or (strict and type(value) is kind in (str, int, bool)):
        return value
    require(value is not None, f"{name}: has no value; leave it out for the default")
    if dataclasses.is_dataclass(kind):
        return convert_fields(value, kind, name, strict)
    if isinstance(value, os.PathLike):
        value = [os.fspath(value)] if origin is list else os.fspath(value)
    if origin is Annotated:
        value = convert(value, arguments[0], name, strict)
        try:
            for check in kind.__metadata__:
                check(value)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        return value
    if origin is Literal:
        known = ", ".join(map(str, arguments))
        require(value in arguments, f"{name} must be one of {known} (got {abbreviate(value)})")
        return value
    if origin in (Union, UnionType):
        return convert_either(value, arguments, name, strict)
    if isinstance(kind, type) and issubclass(kind, tuple) and not origin:  # a NamedTuple, a list in JSON
        return kind(*convert(value, GenericAlias(tuple, tuple(get_hints(kind).values())), name, strict))
    if origin in (list, tuple):
        items = [part for part in value.split(",") if part] if isinstance(value, str) and not strict else value
        require(isinstance(items, list | tuple), f"{name}: expected a list, got {abbreviate(value)}")
        kinds = arguments if origin is tuple and arguments[1:] != (...,) else arguments[:1] * len(items)
        require(len(kinds) == len(items), f"{name}: expected {len(kinds)} values, got {abbreviate(value)}")
        where = f"{name}[{{}}]" if strict or dataclasses.is_dataclass(arguments[0]) else name
        return origin([convert(items[n], kinds[n], where.format(n), strict) for n in range(len(items))])
    if origin is dict:
        if isinstance(value, str) and not strict:
            pairs = [part.split("=", 1) for part in value.split(",") if part]
            valid = all(len(pair) == 2 for pair in pairs)
            require(valid, f"{name}: expected NAME=VALUE,..., or in YAML a mapping, got {abbreviate(value)}")
            value = {key.strip(): item for key, item in pairs}
        require(isinstance(value, dict), f"{name}: expected 'name: value' lines, got {abbreviate(value)}")
        return {str(key): convert(item, arguments[1], f"{name}.{key}", strict) for key, item in value.items()}
    return convert_scalar(value, kind, name, strict)


def convert_scalar(value: Any, kind: Any, name: str, strict: bool) -> Any:
    expected = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[kind]
    message = f"{name}: expected {expected}, got {abbreviate(value)}"
    if kind is bool and isinstance(value, str) and not strict:
        value = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(value.lower())
    require(isinstance(value, str | int | float) and isinstance(value, bool) == (kind is bool), message)
    require(not strict or type(value) is kind or (kind is float and type(value) is int), message)
    require(kind is not int or not isinstance(value, float) or value.is_integer(), message)
    try:
        converted = kind(value)
    except (ValueError, OverflowError):  # no number, or one with too many digits
        raise UserError(message) from None
    require(kind is not float or math.isfinite(converted), message)
    require(kind is not str or "\0" not in converted, f"{name}: holds a NUL character, which no file's name may")
    require(kind is not int or abs(converted) < 1 << 63, message)
    return converted


def convert_fields(content: Any, kind: Any, where: str, strict: bool = False) -> Any:
    """Converts a mapping to a dataclass. `where`: its key in the file, '' for the whole file. A field `as_` is the key
    `as`."""
    require(
        isinstance(content, dict), f"{where or 'the file'}: expected 'name: value' lines, got {abbreviate(content)}"
    )
    known, values = {name.rstrip("_"): (name, hint) for name, hint in get_hints(kind).items()}, {}
    for key, value in content.items():
        path = f"{where}.{key}" if where else str(key)
        if key in known:
            name, hint = known[key]
            values[name] = convert(value, hint, path, strict)
        elif not strict:
            raise UserError(f"{path}: unknown key; {suggest_name(str(key), list(known))}")
    for parameter in fields(kind):
        missing = parameter.name not in values and is_required(parameter)
        require(not missing, f"{where}.{parameter.name} is missing".lstrip("."))
    return kind(**values)


def convert_either(value: Any, kinds: tuple[Any, ...], name: str, strict: bool) -> Any:
    """Converts to a union: for int | Literal["auto"] one of the words, else the other kind; for str | list[str] a list
    if `value` is one."""
    if any(get_origin(kind) is list for kind in kinds):
        is_list = isinstance(value, list | tuple)
        return convert(value, next(kind for kind in kinds if (get_origin(kind) is list) == is_list), name, strict)
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    if value in words:
        return value
    try:
        other = next(kind for kind in kinds if get_origin(kind) is not Literal and kind is not NoneType)
        return convert(value, other, name, strict)
    except ValueError as error:
        raise UserError(f"{error}, which is not {' or '.join(words)} either" if words else str(error)) from None


def list_parameters(stage: type[StageConfig]) -> list[dataclasses.Field[Any]]:
    """The fields made by `param`, in the order of their declaration."""
    return [field for field in fields(stage) if "help" in field.metadata]


def list_with_headings(stage: type[StageConfig]) -> list[tuple[str, dataclasses.Field[Any]]]:
    """The stage's fields, each with its heading ('': no heading), those of MOST_USED first."""
    heading, pairs = "", list[tuple[str, dataclasses.Field[Any]]]()
    for parameter in list_parameters(stage):
        heading = parameter.metadata["group"] or heading
        pairs.append((MOST_USED if parameter.metadata["often"] else heading, parameter))
    return sorted(pairs, key=lambda pair: pair[0] != MOST_USED)


def is_required(parameter: dataclasses.Field[Any]) -> bool:
    return parameter.default is MISSING and parameter.default_factory is MISSING


def get_default(parameter: dataclasses.Field[Any]) -> Any:
    """The parameter's default; MISSING if it is required."""
    return parameter.default if parameter.default_factory is MISSING else parameter.default_factory()


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@contextmanager
def naming_parameters() -> Iterator[None]:
    """For callers from Python: an error that begins with a flag, `--top-k 0: ...`, begins with `top_k 0: ...`."""
    try:
        yield
    except MustError as error:
        begin = re.match(r"(?:missing: )?--[a-z-]+", message := str(error))
        if begin:
            error.args = (message.replace(begin[0], begin[0].replace("--", "").replace("-", "_"), 1),)
        raise


def require(condition: bool, message: str) -> None:
    """Raises UserError(message) unless `condition` holds."""
    if not condition:
        raise UserError(message)


def match_form(pattern: re.Pattern[str], value: object, noun: str) -> str:
    """Returns `value` if the whole of it matches."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise UserError(f"{abbreviate(value)} is not a {noun}")
    return value
