"""A stage's parameters as command line flags, and a parser whose error messages are one line."""

import argparse
import re
import sys
from dataclasses import Field
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from must.base.parameters import StageConfig, flag, get_default, is_required, list_parameters, with_headings
from must.base.program import WRONG_INPUT
from must.base.text import close_to


def add_hidden_flags(parser: argparse.ArgumentParser, stage: type[StageConfig], prefix: str) -> None:
    """Adds a hidden flag for each of another stage's parameters that the parser lacks; the value is PREFIX + NAME."""
    hints, existing = get_type_hints(stage), parser._option_string_actions
    for parameter in list_parameters(stage):
        if flag(parameter.name) not in existing:
            kind: Any = {"action": argparse.BooleanOptionalAction} if is_switch(hints[parameter.name]) else {}
            parser.add_argument(
                flag(parameter.name),
                dest=prefix + parameter.name,
                default=argparse.SUPPRESS,
                help=argparse.SUPPRESS,
                **kind,
            )


def add_flags(parser: argparse.ArgumentParser, stage: type[StageConfig]) -> None:
    """Adds a flag for each parameter, under the stage's headings if it has any.

    The parsed namespace has no attribute for a flag that is not given."""
    hints = get_type_hints(stage)
    groups: dict[str, argparse._ActionsContainer] = {"": parser}
    for title, parameter in with_headings(stage):
        target = groups[title] if title in groups else groups.setdefault(title, parser.add_argument_group(title))
        name, kind, metavar = parameter.name, hints[parameter.name], parameter.metadata["metavar"]
        value = describe_default(stage, parameter)
        text = parameter.metadata["help"].replace("%", "%%") + (f" [{value}]" if value else "")
        options: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
        if parameter.metadata["positional"]:
            target.add_argument(name, nargs="*", metavar=metavar, **options)  # a --config file may have it
        elif is_switch(kind):
            target.add_argument(flag(name), action=argparse.BooleanOptionalAction, **options)
        else:
            if parameter.metadata["bare"]:
                options["action"] = Once
                target.add_argument(name, nargs="?", **options | {"help": argparse.SUPPRESS})
            metavar = "|".join(get_args(kind)) if get_origin(kind) is Literal else metavar or "X"
            target.add_argument(flag(name), metavar=metavar, **options)


def describe_default(stage: type[StageConfig], parameter: Field[Any]) -> str:
    """The parameter's value if it is not given, for its help."""
    name, default = parameter.name, get_default(parameter)
    if is_required(parameter):
        return "required without WORK" if parameter.metadata["work"] and name != "model" else "required"
    value = str(default)
    if isinstance(default, dict):
        value = ",".join(f"{key}={item:g}" for key, item in default.items())
    elif isinstance(default, list):
        value = ",".join(map(str, default))
    return preset_text(stage.by_preset[name], value) if name in stage.by_preset else value


def preset_text(auto: str, published: str) -> str:
    """The default of a parameter that presets choose: its value in the preset auto ("" if computed), and published."""
    first = f"auto: {auto}" if auto not in ("", "auto") else auto or "by preset"
    return first + (f"; published: {published}" if published else "")


def is_switch(kind: Any) -> bool:
    """Whether the flags are --NAME and --no-NAME. Without either, a third value such as auto is possible."""
    return bool in (kind, *get_args(kind))


class Once(argparse.Action):
    """Stores a value, and refuses a second one."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        if hasattr(namespace, self.dest):
            parser.error(f"{flag(self.dest)}: is given twice, {getattr(namespace, self.dest)} and {values}")
        setattr(namespace, self.dest, values)


def format_usage(stage: type[StageConfig]) -> str:
    """The usage of the help with the required flags only; argparse's own lists every flag. The form with WORK is
    the first, where that gives some of them."""
    words, with_work = list[str](), list[str]()
    for parameter in filter(is_required, list_parameters(stage)):
        metavar, positional = parameter.metadata["metavar"] or "X", parameter.metadata["positional"]
        word = f"{metavar} [{metavar} ...]" if positional else f"{flag(parameter.name)} {metavar}"
        words.append(word.replace("|WORK", ""))
        if not parameter.metadata["work"] and parameter.name != "model":  # WORK stands for --model
            with_work.append(word)
    forms = [["WORK", *with_work], words] if any(p.metadata["work"] for p in list_parameters(stage)) else [words]
    return "\n       ".join(" ".join(["%(prog)s", *form, "[options]"]) for form in forms)


class OneLineParser(argparse.ArgumentParser):
    """Prints errors as one line, with the most similar flag; argparse itself prints all of a stage's flags first."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        for word in sys.argv[1:] if args is None else args:  # first, as argparse may misread an unknown flag's value
            if word == "--" or (self._subparsers and not word.startswith("-")):
                break
            if word.startswith("--") and word.split("=")[0] not in self._option_string_actions:
                self.unknown(word)
        namespace, unparsed = super().parse_known_args(args, namespace)
        if unparsed:
            self.unknown(unparsed[0])
        return namespace, unparsed

    def unknown(self, word: str) -> NoReturn:
        name = word.split("=")[0]
        if not word.startswith("-"):
            self.error(f"{word}: unexpected; write a value after its flag, and quote a name with spaces")
        near = close_to(name.lstrip("-"), [option.removeprefix("--") for option in self._option_string_actions])
        self.error(f"{name}: unknown{f'; did you mean --{near[0]}?' if near else ''}")

    def error(self, message: str) -> NoReturn:
        if match := re.match(r"argument COMMAND: invalid choice: '(.*)' \(choose from", message):
            commands = next(action.choices for action in self._actions if action.dest == "command")
            near = close_to(match[1], [*(commands or ())])
            message = f"{match[1]}: no such command{f'; did you mean {near[0]}?' if near else ''}"
        self.exit(WRONG_INPUT, f"{self.prog}: {message} ({self.prog} --help lists all)\n")
