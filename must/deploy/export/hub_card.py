"""README.md as a hub reads it: the model card, with what the hub sorts models by in a YAML block before it."""

import re
from typing import Any

import yaml

from must.deploy.export.model_card import model_card
from must.evaluation.result import Metrics
from must.method.model.bundle import Description

TASKS = {
    "open_clip": "zero-shot-image-classification",
    "transformers": "zero-shot-image-classification",
    "timm": "image-feature-extraction",  # its "classes" are the feature's numbers: no probabilities to show
    "onnx": "image-classification",
}
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)


def hub_card(
    description: Description, exported: dict[str, Any], metrics: Metrics | None, usage: str, licence: str
) -> str:
    """Markdown with front matter.

    Args:
        exported: what `must export` returns; its `to` names the library.
        metrics: what was measured, if anything was; no number is in the card without it.
        usage: Markdown, how to classify with the folder.
        licence: the hub's short name of one; none is claimed if empty.
    """
    to = exported.get("to", "onnx")
    values: dict[str, Any] = {
        "library_name": to,
        "pipeline_tag": TASKS[to],
        "tags": ["clip", "image-classification", "unsupervised", "must", "arxiv:2206.02967"],
        **({"license": licence} if licence else {}),
        **base_model(description),
        **measured(description, metrics),
    }
    front = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{model_card(description, exported, metrics, usage)}"


def base_model(description: Description) -> dict[str, Any]:
    """The backbone's repository on the hub, where open_clip or its own name tells it."""
    import open_clip

    name = description.backbone.removeprefix("hf-hub:")
    if name == description.backbone:
        tag = description.pretrained
        known = open_clip.get_pretrained_cfg(name.replace("/", "-"), tag) if tag else {}
        name = (known or {}).get("hf_hub", "").strip("/")
    if not REPOSITORY.fullmatch(name):
        return {}
    return {"base_model": name} | ({"base_model_relation": "finetune"} if description.provenance else {})


def measured(description: Description, metrics: Metrics | None) -> dict[str, Any]:
    """The hub's model-index, of labelled images only, and not of those that `must review` picked."""
    if not metrics or not metrics.adapted or metrics.data.picked:
        return {}
    data, adapted = metrics.data, metrics.adapted
    numbers = [
        {"type": "accuracy", "name": "top-1", "value": adapted.top1},
        {"type": "accuracy", "name": "mean per class", "value": adapted.mean_per_class},
    ]
    dataset = {
        "type": "imagefolder",
        "name": "images of the model's owner",
        "split": data.split,
        "revision": data.index_sha256,
    }
    name = f"{description.backbone}, adapted to {len(description.classes)} classes"
    results = [{"task": {"type": "image-classification"}, "dataset": dataset, "metrics": numbers}]
    return {"model-index": [{"name": name, "results": results}]}


def usage(packages: str, load: str, feature: str) -> str:
    """How Python code classifies a picture with an exported folder, as Markdown; `feature` is a unit one, [1, D]."""
    return f"""\
```python
import json, {packages}, PIL.Image as Image
{load}
file = safetensors.safe_open("FOLDER/classifier.safetensors", "pt")
columns, classes = file.get_tensor("classifier"), json.loads(file.metadata()["classes"])
picture = Image.open("photo.jpg").convert("RGBA")  # what is transparent: white, as `must` sees it
picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
{feature}
probability = (file.get_tensor("logit_factor") * feature @ columns).softmax(-1)
print(classes[probability.argmax()])
```"""
