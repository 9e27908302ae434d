"""The model card: description, measured quality, and limits of a model. model_card.jinja is its template.

The card for a hub (README.md) begins with the hub's metadata as YAML."""

import re
from functools import cache
from importlib import resources
from typing import Any

import jinja2
import yaml

from must.base.text import pluralize
from must.data.image.preprocess import describe_preprocess
from must.evaluation.result import METRIC_ROWS, Metrics, format_percent
from must.method.model.description import Description, get_preprocess

README_FILE = "README.md"  # the model card for a hub, with a YAML header
CLASSES_SHOWN = 100
PARAMETERS_SHOWN = ("preset", "epochs", "batch_size", "lr", "seed")
LICENCES = (
    ("openai", "MIT (github.com/openai/CLIP)"),
    ("laion", "MIT (LAION's OpenCLIP weights)"),
    ("datacomp", "MIT (DataComp weights)"),
    ("commonpool", "MIT (DataComp weights)"),
    ("metaclip", "CC-BY-NC 4.0: no commercial use (github.com/facebookresearch/MetaCLIP)"),
    ("webli", "Apache-2.0 (Google's SigLIP weights)"),
    ("merged2b", "MIT (EVA-CLIP weights)"),
    ("dfn", "Apple's sample code licence (huggingface.co/apple/DFN*)"),
)
"""By the beginning of open_clip's pretrained tag, as the publishers stated when this was written."""
TASKS = {"open_clip": "zero-shot-image-classification", "onnx": "image-classification"}
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)


@cache
def template() -> jinja2.Template:
    """Every value in it is escaped for Markdown."""
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined,
        finalize=escape,
    )  # fmt: skip
    environment.filters["percent"] = format_percent
    text = resources.files("must.deploy.export").joinpath("model_card.jinja").read_text("utf-8")
    return environment.from_string(text)


def make_model_card(description: Description, exported: dict[str, Any], metrics: Metrics | None) -> str:
    """Markdown. `exported` is the result of `must export`, `metrics` that of `must evaluate`, if any."""
    to = exported.get("to", "onnx")
    return template().render(
        d=description,
        to=to,
        knows_none=to == "onnx" and bool(description.provenance.memory and description.provenance.memory.none),
        origin=describe_origin(description, with_memory=to == "onnx"),
        exported=exported,
        check=exported["check"],
        unsure=exported.get("abstention"),
        metrics=metrics,
        preprocess=describe_preprocess(get_preprocess(description)),
        training=list_training_rows(description, with_memory=to == "onnx"),
        licence=find_backbone_licence(description.pretrained),
        rows=[row for row in METRIC_ROWS if row[0] in ("top1", "mean_per_class", "ece")],
        CLASSES_SHOWN=CLASSES_SHOWN,
    )


def describe_origin(description: Description, with_memory: bool) -> str:
    """How the model was made. `with_memory`: the export holds the memory, if there is one."""
    provenance, memory = description.provenance, description.provenance.memory
    selection = provenance.selection
    trained = bool(provenance.config) and not (selection and selection.alpha == 0)
    text = "CLIP's zero-shot classifier"
    if trained:
        kept = f", of which a share of {selection.alpha:g} is kept" if selection and selection.alpha != 1 else ""
        method = "masked unsupervised self-training (MUST, arXiv 2206.02967)"
        text = f"CLIP, trained on unlabeled images of the target domain by {method}{kept}"
    if memory and with_memory:
        text += f", with a memory of {pluralize(memory.images, 'unlabeled image')}"
    labels = "No labels were used"
    if memory and memory.answers and with_memory:
        labels = f"People named the classes of {pluralize(memory.answers, 'image')}"
    return f"{text}. {labels}."


def list_training_rows(description: Description, with_memory: bool) -> list[tuple[str, Any]]:
    """(name, value) of what is known of the training; [] for the zero-shot model."""
    provenance, memory = description.provenance, description.provenance.memory
    if not provenance:
        return []
    answers = f", {pluralize(memory.answers, 'answer')}" if memory and memory.answers else ""
    rows = [
        ("backbone", f"{description.backbone} {description.pretrained}".strip()),
        ("weights (sha256)", description.weights_sha256),
        ("memory", f"{pluralize(memory.images, 'unlabeled image')}{answers}" if memory and with_memory else ""),
        ("index of the images (sha256)", provenance.index_sha256),
        ("processes", provenance.processes),
        ("git revision", provenance.git_revision),
        *((f"parameter {name}", provenance.config.get(name)) for name in PARAMETERS_SHOWN),
        *provenance.versions.items(),
    ]
    return [(name, value) for name, value in rows if value not in (None, "")]


def find_backbone_licence(pretrained: str) -> str:
    known = (text for start, text in LICENCES if pretrained.lower().startswith(start))
    return next(known, "not known to us; ask the publisher of the weights")


def escape(value: Any) -> str:
    """Escapes untrusted text, such as names of classes and files, for Markdown and terminals."""
    text = " ".join(str(value).split())
    known = (c if c.isprintable() or "\udc80" <= c <= "\udcff" else "?" for c in text)  # these: bytes of no UTF-8
    return re.sub(r"([\\`*_{}\[\]<>#|!~])", r"\\\1", "".join(known))


def make_front_matter(description: Description, to: str, metrics: Metrics | None, licence: str) -> str:
    """What a hub reads at the beginning of a README.md: the library `to`, and no metrics or licence that was not given.
    `licence`: the hub's identifier."""
    values: dict[str, Any] = {
        "library_name": to,
        "pipeline_tag": TASKS[to],
        "tags": ["clip", "image-classification", "unsupervised", "must", "arxiv:2206.02967"],
        **({"license": licence} if licence else {}),
        **find_base_model(description),
        **make_model_index(description, metrics),
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---\n\n"


def find_base_model(description: Description) -> dict[str, Any]:
    """The backbone's repository on the hub, from its name or from open_clip; {} if unknown."""
    import open_clip

    name = description.backbone.removeprefix("hf-hub:")
    if name == description.backbone:
        tag = description.pretrained
        known = open_clip.get_pretrained_cfg(name.replace("/", "-"), tag) if tag else {}
        name = (known or {}).get("hf_hub", "").strip("/")
    if not HUB_NAME.fullmatch(name):
        return {}
    return {"base_model": name} | ({"base_model_relation": "finetune"} if description.provenance else {})


def make_model_index(description: Description, metrics: Metrics | None) -> dict[str, Any]:
    """The hub's model-index: only for metrics on labelled images."""
    if not metrics or not metrics.adapted:
        return {}
    data, adapted = metrics.data, metrics.adapted
    numbers = [("top-1", adapted.top1), ("mean per class", adapted.mean_per_class)]
    result = {
        "task": {"type": "image-classification"},
        "dataset": {
            "type": "imagefolder", "name": "images of the model's owner", "split": data.split,
            "revision": data.index_sha256,
        },
        "metrics": [{"type": "accuracy", "name": name, "value": value} for name, value in numbers],
    }  # fmt: skip
    name = f"{description.backbone}, adapted to {len(description.classes)} classes"
    return {"model-index": [{"name": name, "results": [result]}]}
