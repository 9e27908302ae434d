"""Runs the library's stages, rows of must/table.py: `run` is the one door; `make_function` makes `must.NAME` of it.

    from must.api.run import run
    run("train", shards="shards/", classifier="classifier.safetensors", output="model/", preset="auto")

A stage's inputs are checked before torch is imported: a wrong path is reported at once, not after seconds. The checks
read files with the stage's own functions, so their error messages are the same. A stage called from Python can do
without them: it raises the same errors, later."""

import inspect
import os
import re
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

from must.api.results import RESULTS, Predicted, make_result
from must.base import storage
from must.base.console import silence_pillow
from must.base.errors import TransientError, UserError
from must.base.parameters import (
    StageConfig,
    flag,
    get_default,
    is_required,
    list_parameters,
    list_with_headings,
    load,
    naming_parameters,
    read_yaml,
    require,
)
from must.base.processes import check_processes, killed_workers
from must.base.program import load_torch
from must.config.adapt import AdaptConfig, gather_settings
from must.config.train import CostConfig
from must.config.work import (
    DESCRIPTION_FILE,
    PARTS,
    RECORD_FILE,
    REFINED_FILE,
    complete_from_record,
    complete_from_work,
)
from must.table import COMMANDS, NOT_STAGES, Stage, import_name


def preflight(config: Any) -> None:
    """Checks every given parameter that has a kind, in the order of their declaration."""
    if isinstance(workers := getattr(config, "workers", 0), int):
        check_processes(workers, "--workers")
    check_device(getattr(config, "device", "auto"))
    for field in (field for field in list_parameters(type(config)) if field.metadata["kind"]):
        kind, value = field.metadata["kind"], getattr(config, field.name)
        if value and ("output" in kind or kind == "apart"):
            check_output(value, flag(field.name), kind)
            if kind == "output" and field.metadata["parts"]:
                refuse_folder_of_others(value, flag(field.name), field.metadata["parts"][0].format(**vars(config)))
        elif value:
            check_input(config, kind, value, flag(field.name))


def check_device(device: str) -> None:
    known = re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device)
    require(known is not None, f"--device {device}: expected auto, cpu, cuda, cuda:N or mps")


def refuse_folder_of_others(uri: str, flag: str, own: str) -> None:
    """Raises UserError: the folder is one that another stage has written. `own`: the part that the stage writes."""
    markers = {RECORD_FILE} | {part.marker for name, part in PARTS.items() if part.marker and name != own}
    for name in sorted(markers - {PARTS[own].marker}):
        others = not storage.is_remote(uri) and (storage.local(uri) / name).exists()
        require(not others, f"{flag} {uri}: holds {name} of another command; choose another folder")


KINDS = "class set", "model", "metrics", "refined", "bundle", "classifier", "baseline", "shards", "preset", "answers"


def check_input(config: Any, kind: str, value: str, flag: str) -> None:
    """Reads what a parameter names, of one of KINDS."""
    from must.answers.answers_file import find_answers_file, read_answers
    from must.data.format import load_index
    from must.evaluation.result import read_metrics
    from must.model.classifier import BUNDLED_SET, load_class_set, read_header
    from must.model.description import load_description
    from must.model.hub import check_model_name
    from must.training.recipe import AUTO, find_published, list_preset_rows

    assert kind in KINDS, kind
    if kind == "class set" and value != BUNDLED_SET:  # the bundled set is open_clip's, and reading it imports torch
        load_class_set(value)
    elif kind == "model":
        check_model_name(value, config.pretrained)
    elif kind == "metrics":
        read_metrics(value)
    elif kind == "refined":
        storage.read_json(storage.join(value, REFINED_FILE), flag)
    elif kind == "bundle":
        load_description(value)
    elif kind == "classifier" or (kind == "baseline" and not storage.exists(storage.join(value, DESCRIPTION_FILE))):
        check_classifier(config, value, flag)
    elif kind == "shards":
        load_index(value, getattr(config, "index_sha256", "")).list_shards(config.split)
    elif kind == "preset" and value != AUTO:
        find_published(value, "" if "*" in list_preset_rows(value) else read_header(config.classifier).model)
    elif kind == "answers":
        require(
            storage.exists(find_answers_file(value)), f"{flag} {value}: no answers.jsonl there; `must review` writes it"
        )
        read_answers(value)


def check_classifier(config: Any, file: str, flag: str) -> None:
    """A classifier file, and its model folder."""
    from must.model.classifier import read_header, require_shares
    from must.model.hub import require_model

    header = read_header(file, flag)
    require_model(header.model_folder)
    if getattr(config, "class_prior", "") == "given":
        require_shares(header.shares, file)


def require_apart(folder: Path, label: str) -> None:
    """Raises UserError: the folder is a model or inside one, where a run must not write. `label` begins the message."""
    model = next((path for path in (folder, *folder.parents) if (path / DESCRIPTION_FILE).is_file()), None)
    require(model is None, f"{label}: is in the model {model}; choose a folder beside it")


def check_output(uri: str, flag: str, kind: str = "output") -> None:
    """Checks paths on this machine only: a bucket's permissions show when it is written to. A model may be trained
    again in its place ("bundle output"), but not in another one."""
    if storage.is_remote(uri):
        return
    path, is_file = storage.local(uri).absolute(), kind == "output file"
    require(
        not (path.is_dir() if is_file else path.is_file()),
        f"{flag} {uri}: is a {'folder; give a file' if is_file else 'file; give a folder'}",
    )
    existing = path if path.exists() else next(parent for parent in path.parents if parent.exists())
    require(existing == path or existing.is_dir(), f"{flag} {uri}: cannot be written: {existing} is no folder")
    require(os.access(existing, os.W_OK), f"{flag} {uri}: cannot be written: no permission for {existing}")
    if kind in ("apart", "bundle output"):
        require_apart(path if kind == "apart" else path.parent, f"{flag} {uri}")
    is_work = kind == "apart" and (path / RECORD_FILE).exists()
    require(not is_work, f"{flag} {uri}: is a folder of `must adapt`; choose another one")


def configure(stage: str, values: dict[str, Any], file: str | None = None) -> StageConfig:
    """The stage's parameters: `values` override the YAML `file`, then the paths found in WORK, then the defaults. None
    leaves a parameter at its default; the preset of training is `auto` if none is named."""
    config = COMMANDS[stage].config
    given = {name: value for name, value in values.items() if value is not None}
    values = complete_from_work(config, (read_yaml(config, file) if file else {}) | given)
    if config is AdaptConfig:
        values = complete_from_record(gather_settings(values))
    if issubclass(config, CostConfig):
        values = values | {"preset": values.get("preset") or "auto"}
    return load(config, values)


def run(stage: str, config: StageConfig | None = None, /, **values: Any) -> Any:
    """Checks a stage's inputs, imports its function, and calls it; returns what that does. Raises what the functions at
    `must` do, but SystemExit for training that was stopped (75, a checkpoint is saved).

    Args:
        config: the parameters, of `configure`; None: `values` are the parameters, as `configure` takes them.
        values: beside a config: what the function takes besides, such as `truth` of must review."""
    row = COMMANDS[stage]
    if config is None:
        config, values = configure(stage, values), {}
    preflight(config)
    try:
        with warnings.catch_warnings(), killed_workers():
            silence_pillow()
            if row.torch:
                load_torch(stage)
            return import_name(row.function)(config, **values)
    except ModuleNotFoundError as error:  # an installation without extras, or another image
        if (error.name or "must").split(".")[0] == "must":
            raise
        if error.name in ("fcntl", "resource"):  # of Python's library, on Unix only
            raise UserError(
                "works on Linux or macOS; here `must predict` and `must.load` do (docs/install.md)"
            ) from None
        raise UserError(
            f"the package {error.name} is not installed here; install it with: pip install 'must-clip[all]', "
            "or take the image that has it (docs/containers.md)"
        ) from None


ENDING = """
Raises:
    must.UserError: the input is wrong, in one line; must.TransientError: the same call may work later. Both are
        ValueErrors.
    OSError: a path that cannot be read or written."""


def make_function(name: str) -> Callable[..., Any]:
    """`must.NAME`: runs the stage in this thread, and handles no signals."""
    if name in NOT_STAGES:
        return import_name(NOT_STAGES[name])
    stage = COMMANDS[name]
    signature = make_signature(name, stage)

    @naming_parameters()
    def function(*given: Any, **values: Any) -> Any:
        values = dict(**signature.bind_partial(*given).arguments, **values)
        config = configure(name, values)
        predictions: list[Any] = []
        more = {"take": predictions.append} if name == "predict" and not values.get("output") else {}
        try:
            output = run(name, config, **more)
        except SystemExit as stopped:  # of training
            reason = getattr(stopped, "reason", "stopped")
            raise TransientError(f"{reason}; call must.{name} again with the same parameters to go on") from stopped
        if name == "predict":
            return Predicted(predictions, output["images"], output["unreadable"])
        return make_result(config, output)

    function.__name__ = function.__qualname__ = name
    function.__module__ = "must"  # where it is imported from, by pickle too
    function.__doc__ = make_docstring(stage)
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function


def make_signature(name: str, stage: Stage) -> inspect.Signature:
    """Keyword parameters: the required ones first, then the most used. What a command takes without its flag may be
    given without its name."""
    hints = get_type_hints(stage.config)
    order = sorted((field for _, field in list_with_headings(stage.config)), key=lambda field: not is_required(field))
    fields = sorted(order, key=lambda field: not field.metadata["bare"])
    parameters = []
    for field in fields:
        default = inspect.Parameter.empty if is_required(field) else get_default(field)
        bare = field.metadata["bare"]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if bare else inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(field.name, kind, default=default, annotation=hints[field.name]))
    result = RESULTS.get(name, Any)
    if stage.config is AdaptConfig:
        parameters.append(inspect.Parameter("training", inspect.Parameter.VAR_KEYWORD, annotation=Any))
        result = import_name("must.api.model:Adapted")
    return inspect.Signature(parameters, return_annotation=result)


def make_docstring(stage: Stage) -> str:
    """The stage's help, its parameters under their headings, and the errors."""
    groups: dict[str, list[str]] = {}
    for heading, field in list_with_headings(stage.config):
        text = f"{field.name}: {write_as_python(field.metadata['help'])}"
        lines = groups.setdefault(heading, [f"    {heading}:"] if heading else [])
        lines += textwrap.wrap(text, 110, initial_indent="    ", subsequent_indent=" " * 8)
    blocks = "\n\n".join(map("\n".join, groups.values()))
    return f"{write_as_python(stage.help)}\n\nArgs:\n{blocks}\n{ENDING}"


def write_as_python(text: str) -> str:
    """A help text with --flag-names replaced by the names of the parameters."""

    def parameter(match: re.Match[str]) -> str:
        name = match[2].replace("-", "_")
        return f"{name}=False" if match[1] else name

    return re.sub(r"--(no-)?([a-z][a-z-]*)", parameter, text)
