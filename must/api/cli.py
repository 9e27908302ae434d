"""The command line: one subcommand for each stage, with flags made from must/config/, and a parser whose error messages
are one line."""

import argparse
import logging
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import Field
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import must
from must.api.run import configure, run
from must.base import storage
from must.base.console import TO_STDERR, open_closed
from must.base.errors import UserError
from must.base.parameters import (
    StageConfig,
    flag,
    get_default,
    is_required,
    list_parameters,
    list_with_headings,
    require,
)
from must.base.processes import end_with_parent
from must.base.program import WRONG_INPUT, exiting_at_terminal, is_first_rank
from must.base.text import close_to, make_page_printable, make_printable
from must.config.adapt import AdaptConfig
from must.config.train import TrainConfig
from must.config.work import REPORT_FILE, Workspace, find_work, list_in_work
from must.table import COMMANDS

logger = logging.getLogger(__name__)

GROUPS = {
    "every day": ("quickstart", "adapt", "review", "sort", "predict", "export", "demo"),
    "single steps, which adapt takes by itself": (),  # all others, in the order of the table
    "models in use": ("serve", "promote"),
}  # fmt: skip
INDEX_HELP = "Show or verify a folder of shards."

EPILOG = """\
exit codes: 0 done, 2 the input is wrong (one line says what), 73 another run writes there, 75 stopped and
            resumable, 130 interrupted, 1 a bug; docs/errors.md says what to do
a first run:  must quickstart
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a stage. Exits with 2 and one line when the user's input is wrong."""
    open_closed()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    options = vars(build_parser().parse_args(arguments))
    command = options.pop("command")
    with exiting_at_terminal(command):
        if command == "index":  # which is no stage
            run_index(options)
            return
        file = options.pop("config_file", None)
        if command == "predict" and not file and "model" not in options:
            refuse_no_model(options.get("images", []))
        config: Any = configure(command, options, file)
        run(command, config)
        if command == "evaluate" and is_first_rank():
            logger.info(f"\nreport: {storage.join(config.output, REPORT_FILE)}")
        print_next(command, config)


def print_next(command: str, config: Any) -> None:
    """Prints what to type next, to standard error, as it is not a result."""
    values = vars(config)
    if values.get("part", "1/1") != "1/1" or values.get("to", "onnx") != "onnx" or not is_first_rank():
        return  # other parts follow, or nothing uses the output
    row = COMMANDS[command]
    template = row.next
    if row.next_in_work and (work := find_work(row.config, {name: values[name] for name in ("model", "output")})):
        template, values = row.next_in_work, {"work": work}
    if template:
        quoted = {name: shlex.quote(str(value).rstrip("/")) for name, value in values.items()}
        lines = template.format(**quoted).split("; ")
        logger.info(make_page_printable("next: " + "\n      ".join(lines)), extra=TO_STDERR)


def refuse_no_model(images: list[str]) -> None:
    """Raises UserError: `must predict` without --model; the message is the command with it. `images` may hold WORK."""
    models = [path for path in images if Workspace(path).is_made()]
    others = [shlex.quote(path) for path in images if path not in models[:1]] or ["FOLDER"]
    words = " ".join([*others[:3], *(["..."] if len(others) > 3 else [])])
    model = shlex.quote(models[0].rstrip("/")) if models else "WORK"
    raise UserError(
        f"missing: --model; the command is: must predict {make_printable(words)} --model {make_printable(model)}"
    )


def run_index(options: dict[str, Any]) -> None:
    from must.data.format import verify
    from must.data.shards.build import show_index

    action, *uris = options["words"] or [""]
    usage = "expected `must index show SHARDS` or `must index verify SHARDS`, such as: must index verify work/shards"
    require(action in ("show", "verify") and len(uris) == 1, usage)
    (show_index if action == "show" else verify)(uris[0])


def list_commands() -> str:
    """The commands with their help, by group."""
    help_of = {name: stage.help for name, stage in COMMANDS.items()} | {"index": INDEX_HELP}
    others = [name for name in help_of if not any(name in names for names in GROUPS.values())]
    lines = list[str]()
    for group, names in GROUPS.items():
        lines += ["", f"{group}:"]
        for name in names or others:
            lines += textwrap.wrap(help_of[name], 100, initial_indent=f"  {name:12}", subsequent_indent=" " * 14)
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="must",
        usage="must COMMAND [options]",
        description=f"{must.__doc__}\n{list_commands()}",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"must {must.__version__}")
    commands = parser.add_subparsers(
        prog="must", dest="command", required=True, metavar="COMMAND", help=argparse.SUPPRESS
    )
    for name, stage in COMMANDS.items():
        command = commands.add_parser(
            name,
            description=stage.help,
            epilog=f"example:\n  {stage.config.example}",
            usage=format_usage(stage.config),
            allow_abbrev=False,  # --epoch would be --epochs today, and an error once there is an --epoch-something
            add_help=False,  # it comes last
        )
        add_flags(command, stage.config)
        if stage.config is AdaptConfig:
            add_hidden_flags(command, TrainConfig)
        general = command.add_argument_group("general")
        general.add_argument("-h", "--help", action="help", help="show this and exit")
        text = "YAML file with these parameters (NAME: VALUE); flags override it"
        general.add_argument("--config", dest="config_file", metavar="FILE.yaml", help=text)
    index = commands.add_parser("index", description=INDEX_HELP, allow_abbrev=False)
    text = "show what a folder of shards holds, or read everything again and compare"
    index.add_argument("words", nargs="*", metavar="show|verify URI", help=text)
    return parser


def add_hidden_flags(parser: argparse.ArgumentParser, stage: type[StageConfig]) -> None:
    """Adds a hidden flag for each of another stage's parameters that the parser lacks."""
    hints, existing = get_type_hints(stage), parser._option_string_actions
    for parameter in list_parameters(stage):
        if flag(parameter.name) not in existing:
            kind: Any = {"action": argparse.BooleanOptionalAction} if is_switch(hints[parameter.name]) else {}
            parser.add_argument(flag(parameter.name), default=argparse.SUPPRESS, help=argparse.SUPPRESS, **kind)


def add_flags(parser: argparse.ArgumentParser, stage: type[StageConfig]) -> None:
    """Adds a flag for each parameter, under the stage's headings if it has any.

    The parsed namespace has no attribute for a flag that is not given."""
    hints = get_type_hints(stage)
    groups: dict[str, argparse._ActionsContainer] = {"": parser}
    for title, parameter in list_with_headings(stage):
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
        return "required without WORK" if parameter in list_in_work(stage) and name != "model" else "required"
    value = str(default)
    if isinstance(default, dict):
        value = ",".join(f"{key}={item:g}" for key, item in default.items())
    elif isinstance(default, list):
        value = ",".join(map(str, default))
    return describe_preset(stage.by_preset[name], value) if name in stage.by_preset else value


def describe_preset(auto: str, published: str) -> str:
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
    words, with_work, in_work = list[str](), list[str](), list_in_work(stage)
    for parameter in filter(is_required, list_parameters(stage)):
        metavar, positional = parameter.metadata["metavar"] or "X", parameter.metadata["positional"]
        word = f"{metavar} [{metavar} ...]" if positional else f"{flag(parameter.name)} {metavar}"
        words.append(word.replace("|WORK", ""))
        if parameter not in in_work and parameter.name != "model":  # WORK stands for --model
            with_work.append(word)
    forms = [["WORK", *with_work], words] if in_work else [words]
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
