"""What to type after a command: one to three lines that can be pasted, made from its parameters."""

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

# Where nothing says which.
PHOTOS, EXAMPLE_CLASSES, EXAMPLE_MODEL = "photos/", "classes.txt", "ViT-B-16/datacomp_xl_s13b_b90k"


def show(stage: str, config: Any, result: Any) -> None:
    """Prints them, to standard error: they are no result."""
    lines = list[str]()
    with suppress(UserError, OSError):  # the command itself is done
        lines = [line for line in FOLLOWING.get(stage, lambda *_: [])(config, result) if line]
    if lines:
        logger.info(printable_page("next: " + "\n      ".join(lines)), extra=ASIDE)


def command(stage: str, *bare: str, **values: str) -> str:
    """The shortest line with that meaning: WORK alone, if what is in it is what `values` name."""
    values = {name: value for name, value in values.items() if value}
    long = spelt(stage, bare, values)
    known = {field.name: field for field in parameters_of(STAGES[stage].config)}
    for folder in dict.fromkeys(
        str(Path(value).parent) for name, value in values.items() if known[name].metadata["work"]
    ):
        try:
            found = with_work(STAGES[stage].config, {"model": folder})
        except UserError:
            continue
        rest = {name: value for name, value in values.items() if found.get(name) != value}
        if all(name in found or name in rest for name, field in known.items() if is_required(field)):
            long = min(long, spelt(stage, (folder,), rest), key=len)
    return long


def spelt(stage: str, bare: Sequence[str], values: dict[str, Any]) -> str:
    flags = [word for name, value in values.items() for word in (flag(name), *([] if value is True else [value]))]
    return shlex.join(["must", stage, *bare, *flags])


def beside(path: str, name: str) -> str:
    """NAME in the folder that `path` is in."""
    return storage.join(
        path.rstrip("/").rpartition("/")[0] or ("/" if path.startswith("/") else "."), name
    ).removeprefix("./")


def of_bundle(path: str, name: str) -> str:
    """Beside the bundle, named after it."""
    return locate(beside(path, "") or ".").output_of(path.rstrip("/"), name).removeprefix("./")


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
    return spelt("predict", (photos or PHOTOS,), {"model": model} | ({"output": output} if output else {}))


def after_shard(config: Any, _: Any) -> list[str]:
    work = locate(beside(config.output, "") or ".")
    bundle, classifier = beside(config.output, BUNDLE), beside(config.output, CLASSIFIER_FILE)
    if len(work.classifier) == 1:
        return [command("train", shards=config.output, classifier=work.classifier[0], output=bundle)]
    return [
        f"must index show {shlex.quote(config.output)}",
        command("classifier", classes=EXAMPLE_CLASSES, model=EXAMPLE_MODEL, output=classifier),
    ]


def after_classifier(config: Any, _: Any) -> list[str]:
    work = locate(beside(config.output, "") or ".")
    if len(work.shards) != 1:
        return [predict(config.output, ""), command("shard", PHOTOS, output=beside(config.output, "shards"))]
    given = {"shards": work.shards[0], "classifier": config.output}
    return [
        command(stage, **given, output=beside(config.output, name))
        for stage, name in (("train", BUNDLE), ("refine", LABELS))
    ]


def after_plan(config: Any, _: Any) -> list[str]:
    given = {
        name: getattr(config, name) for name in sorted({one.name for one in parameters_of(TrainConfig)} & config.passed)
    }
    given = {name: text(it) for name, it in given.items() if it and (name, it) != ("preset", "auto")}
    return [spelt("train", (), given | {"output": config.output or beside(config.shards, BUNDLE)})]


def text(value: Any) -> Any:
    return value if isinstance(value, bool) else ",".join(map(str, value)) if isinstance(value, list) else str(value)


def after_train(config: Any, _: Any) -> list[str]:
    model, classifier, shards = config.output, config.classifier, config.shards
    refine = {"model": model, "classifier": classifier, "shards": shards, "output": of_bundle(model, LABELS)}
    return [evaluate(model, classifier, shards), command("refine", **refine), review(model, classifier, shards)]


def evaluate(model: str, baseline: str, shards: str) -> str:
    split = locate(beside(shards, "") or ".").split()
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
        command("sort", table, into=beside(config.output, "sorted"), root=photos),
        command("labels", table, to="csv", output=beside(config.output, "labels.csv"), root=photos),
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
        return [spelt("push", (config.output,), {"repo": "my-team/my-model", "private": True})]
    return [predict(config.output, photos_of(config.shards)), command("serve", model=config.output)]


def after_gate(config: Any, decision: Any) -> list[str]:
    told = read_metrics(config.metrics)
    model, made = told.model.bundle, told.config
    if not model or not made:
        return []
    if not decision.passed:
        return [review(model, made.get("baseline", ""), made.get("shards", ""))]
    onnx, folder = of_bundle(model, "onnx"), Path(beside(model, "") or ".").resolve().name
    values = {"model": model, "metrics": config.metrics, "decision": config.output}
    values |= {"onnx": onnx if Path(onnx).is_dir() else "", "registry": beside(model, "registry")}
    return [command("promote", **values, name=re.sub("[^a-z0-9]+", "-", folder.lower()).strip("-") or "model")]


def after_promote(config: Any, _: Any) -> list[str]:
    of = {"registry": config.registry, "name": config.name}
    lines = [spelt("serve", (), of) if config.onnx else "", spelt("promote", (), of | {"list": True})]
    return lines if config.model else []


def after_predict(config: Any, _: Any) -> list[str]:
    if config.output and not config.shards:
        return [command("sort", config.output, into=beside(config.output, "sorted"))]
    if config.output or len(config.images) > 3 or "-" in config.images:
        return []
    given = {name: text(getattr(config, name)) for name in ("classes", "top_k", "abstain") if name in config.passed}
    return [spelt("predict", config.images, {"model": config.model, **given, "output": "predictions.csv"})]


def after_demo(config: Any, _: Any) -> list[str]:
    names = {"classes": "classes.yaml", "model": "model", "test_images": "images/test", "output": "work"}
    places = {name: storage.join(config.output, of) for name, of in names.items()}
    return [spelt("adapt", (storage.join(config.output, "images/unlabeled"),), places)]


def after_sort(config: Any, _: Any) -> list[str]:
    return [] if config.undo else [spelt("sort", (), {"undo": True, "into": config.into})]


def after_labels(config: Any, _: Any) -> list[str]:
    line = command("sort", config.output, into=beside(config.output, "sorted"))
    return [line] if config.to in ("csv", "answers") else []


FOLLOWING: dict[str, Callable[[Any, Any], list[str]]] = {
    "demo": after_demo, "adapt": after_adapt, "shard": after_shard, "classifier": after_classifier, "plan": after_plan,
    "train": after_train, "refine": after_refine, "select": after_select, "evaluate": after_evaluate,
    "export": after_export, "gate": after_gate, "promote": after_promote, "predict": after_predict,
    "sort": after_sort, "labels": after_labels,
}  # fmt: skip
"""By stage. Review and serve say it themselves, while they run; `must push` prints an address."""
