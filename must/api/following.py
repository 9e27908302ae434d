"""The commands to run next, printed after a command: one to three lines to paste, made from its parameters."""

import logging
import re
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from must.api.record import BUNDLE, LABELS, REPORT
from must.api.stages import STAGES
from must.base import storage
from must.base.console import ASIDE
from must.base.errors import UserError
from must.base.files import CLASSIFIER_FILE, INDEX_FILE, METRICS_FILE, PREDICTIONS_FILE
from must.base.parameters import flag, is_required, parameters_of
from must.base.text import printable_page
from must.config import TrainConfig
from must.config.work import locate, with_work
from must.evaluation.result import read_metrics

logger = logging.getLogger(__name__)

# Placeholders, where the parameters name none.
PHOTOS, EXAMPLE_CLASSES, EXAMPLE_MODEL = "photos/", "classes.txt", "ViT-B-16/datacomp_xl_s13b_b90k"


def show(stage: str, config: Any, result: Any) -> None:
    """Prints the next commands to standard error, as they are not a result."""
    lines = list[str]()
    with suppress(UserError, OSError):  # the command itself is done
        lines = [line for line in FOLLOWING.get(stage, lambda *_: [])(config, result) if line]
    if lines:
        logger.info(printable_page("next: " + "\n      ".join(lines)), extra=ASIDE)


def command(stage: str, *bare: str, **values: str) -> str:
    """The shortest equivalent command line: WORK alone, if `values` are the paths found in it."""
    values = {name: value for name, value in values.items() if value}
    long = command_line(stage, bare, values)
    known = {field.name: field for field in parameters_of(STAGES[stage].config)}
    for folder in dict.fromkeys(
        str(Path(value).parent) for name, value in values.items() if known[name].metadata["work"]
    ):
        try:
            located = with_work(STAGES[stage].config, {"model": folder})
        except UserError:
            continue
        others = {name: value for name, value in values.items() if located.get(name) != value}
        if all(name in located or name in others for name, field in known.items() if is_required(field)):
            long = min(long, command_line(stage, (folder,), others), key=len)
    return long


def command_line(stage: str, bare: Sequence[str], values: dict[str, Any]) -> str:
    flags = [word for name, value in values.items() for word in (flag(name), *([] if value is True else [value]))]
    return shlex.join(["must", stage, *bare, *flags])


def sibling(path: str, name: str) -> str:
    """NAME in the folder that `path` is in."""
    return storage.join(
        path.rstrip("/").rpartition("/")[0] or ("/" if path.startswith("/") else "."), name
    ).removeprefix("./")


def of_bundle(path: str, name: str) -> str:
    """The path of NAME beside the bundle, named after the bundle."""
    return locate(sibling(path, "") or ".").output_of(path.rstrip("/"), name).removeprefix("./")


def photos_of(shards: str) -> str:
    """The folder that shards were made from."""
    try:
        uri = storage.read_json(storage.join(shards, INDEX_FILE), "--shards")["source"]["uri"] if shards else ""
    except (UserError, OSError, KeyError, TypeError):
        uri = ""
    return uri if isinstance(uri, str) and "://" not in uri and Path(uri).is_dir() else ""


def predict(model: str, photos: str, output: str = "") -> str:
    work = locate(str(Path(model).parent)) if "://" not in model else None
    if work and (work.bundle == (model,) or (not work.bundle and work.onnx == (model,))):
        model = work.folder
    return command_line("predict", (photos or PHOTOS,), {"model": model} | ({"output": output} if output else {}))


def after_shard(config: Any, _: Any) -> list[str]:
    work = locate(sibling(config.output, "") or ".")
    bundle, classifier = sibling(config.output, BUNDLE), sibling(config.output, CLASSIFIER_FILE)
    if len(work.classifier) == 1:
        return [command("train", shards=config.output, classifier=work.classifier[0], output=bundle)]
    return [
        f"must index show {shlex.quote(config.output)}",
        command("classifier", classes=EXAMPLE_CLASSES, model=EXAMPLE_MODEL, output=classifier),
    ]


def after_classifier(config: Any, _: Any) -> list[str]:
    work = locate(sibling(config.output, "") or ".")
    if len(work.shards) != 1:
        return [predict(config.output, ""), command("shard", PHOTOS, output=sibling(config.output, "shards"))]
    inputs = {"shards": work.shards[0], "classifier": config.output}
    return [
        command(stage, **inputs, output=sibling(config.output, name))
        for stage, name in (("train", BUNDLE), ("refine", LABELS))
    ]


def after_plan(config: Any, _: Any) -> list[str]:
    names = sorted({field.name for field in parameters_of(TrainConfig)} & config.passed)
    passed = {name: getattr(config, name) for name in names}
    flags = {name: as_text(value) for name, value in passed.items() if value and (name, value) != ("preset", "auto")}
    return [command_line("train", (), flags | {"output": config.output or sibling(config.shards, BUNDLE)})]


def as_text(value: Any) -> Any:
    return value if isinstance(value, bool) else ",".join(map(str, value)) if isinstance(value, list) else str(value)


def after_train(config: Any, _: Any) -> list[str]:
    model, classifier, shards = config.output, config.classifier, config.shards
    refine = {"model": model, "classifier": classifier, "shards": shards, "output": of_bundle(model, LABELS)}
    return [evaluate(model, classifier, shards), command("refine", **refine), review(model, classifier, shards)]


def evaluate(model: str, baseline: str, shards: str) -> str:
    split = locate(sibling(shards, "") or ".").split()
    values = {"model": model, "baseline": baseline, "shards": shards, "output": of_bundle(model, REPORT)}
    return command("evaluate", **values, split="" if split == "test" else split)


def review(model: str, baseline: str, shards: str) -> str:
    return command("review", model=model, baseline=baseline, shards=shards, output=of_bundle(model, "review"))


def export(model: str, shards: str, metrics: str = "") -> str:
    return command("export", model=model, shards=shards, metrics=metrics, output=of_bundle(model, "onnx"))


def after_adapt(config: Any, adapted: Any) -> list[str]:
    output = config.output.rstrip("/") or config.output
    photos = config.images if Path(config.images).is_dir() else ""
    bundle, shards, metrics = (storage.join(output, name) for name in (BUNDLE, "shards", f"{REPORT}/{METRICS_FILE}"))
    return [
        predict(bundle, photos, storage.join(output, "predictions.csv")),
        review(bundle, storage.join(output, CLASSIFIER_FILE), shards),
        export(bundle, shards, metrics),
    ]


def after_refine(config: Any, _: Any) -> list[str]:
    table, photos = storage.join(config.output, PREDICTIONS_FILE), photos_of(config.shards) or PHOTOS
    return [
        command("sort", table, into=sibling(config.output, "sorted"), root=photos),
        command("labels", table, to="csv", output=sibling(config.output, "labels.csv"), root=photos),
    ]


def after_select(config: Any, _: Any) -> list[str]:
    return [
        evaluate(config.output, config.baseline, config.shards),
        predict(config.output, photos_of(config.shards)),
        export(config.output, config.shards),
    ]


def after_evaluate(config: Any, metrics: Any) -> list[str]:
    file = storage.join(config.output, METRICS_FILE)
    compared = metrics.label_free.compared is not None
    return [
        command("gate", metrics=file, output=of_bundle(config.model, "decision.json")) if compared else "",
        export(config.model, config.shards, file),
    ]


def after_export(config: Any, _: Any) -> list[str]:
    if config.to != "onnx":
        return [command_line("push", (config.output,), {"repo": "my-team/my-model", "private": True})]
    return [predict(config.output, photos_of(config.shards)), command("serve", model=config.output)]


def after_gate(config: Any, decision: Any) -> list[str]:
    metrics = read_metrics(config.metrics)
    model, evaluated = metrics.model.bundle, metrics.config
    if not model or not evaluated:
        return []
    if not decision.passed:
        return [review(model, evaluated.get("baseline", ""), evaluated.get("shards", ""))]
    onnx, folder = of_bundle(model, "onnx"), Path(sibling(model, "") or ".").resolve().name
    values = {"model": model, "metrics": config.metrics, "decision": config.output}
    values |= {"onnx": onnx if Path(onnx).is_dir() else "", "registry": sibling(model, "registry")}
    return [command("promote", **values, name=re.sub("[^a-z0-9]+", "-", folder.lower()).strip("-") or "model")]


def after_promote(config: Any, _: Any) -> list[str]:
    model = {"registry": config.registry, "name": config.name}
    lines = [
        command_line("serve", (), model) if config.onnx else "",
        command_line("promote", (), model | {"list": True}),
    ]
    return lines if config.model else []


def after_predict(config: Any, _: Any) -> list[str]:
    if config.output and not config.shards:
        return [command("sort", config.output, into=sibling(config.output, "sorted"))]
    if config.output or len(config.images) > 3 or "-" in config.images:
        return []
    flags = {name: as_text(getattr(config, name)) for name in ("classes", "top_k", "abstain") if name in config.passed}
    return [command_line("predict", config.images, {"model": config.model, **flags, "output": "predictions.csv"})]


def after_demo(config: Any, _: Any) -> list[str]:
    names = {"classes": "classes.yaml", "model": "model", "test_images": "images/test", "output": "work"}
    paths = {name: storage.join(config.output, file) for name, file in names.items()}
    return [command_line("adapt", (storage.join(config.output, "images/unlabeled"),), paths)]


def after_sort(config: Any, _: Any) -> list[str]:
    return [] if config.undo else [command_line("sort", (), {"undo": True, "into": config.into})]


def after_labels(config: Any, _: Any) -> list[str]:
    line = command("sort", config.output, into=sibling(config.output, "sorted"))
    return [line] if config.to in ("csv", "answers") else []


FOLLOWING: dict[str, Callable[[Any, Any], list[str]]] = {
    "demo": after_demo, "adapt": after_adapt, "shard": after_shard, "classifier": after_classifier, "plan": after_plan,
    "train": after_train, "refine": after_refine, "select": after_select, "evaluate": after_evaluate,
    "export": after_export, "gate": after_gate, "promote": after_promote, "predict": after_predict,
    "sort": after_sort, "labels": after_labels,
}  # fmt: skip
"""By stage. `must review` and `must serve` print their own lines while they run; `must push` prints an address."""
