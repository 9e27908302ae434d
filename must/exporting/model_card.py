"""README.md of an export: a model card for people and hubs, with what was measured and nothing else."""

import re
from pathlib import PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from must.base.text import pluralize
from must.data.image.preprocess import describe_preprocess
from must.evaluation.result import Metrics, format_percent
from must.model.description import Description, get_preprocess

README_FILE = "README.md"
CLASSES_SHOWN = 100
TASKS = {"open_clip": "zero-shot-image-classification", "onnx": "image-classification"}
HUB_NAME = re.compile(r"hf-hub:([\w-][\w.-]*/[\w.-]+)", re.ASCII)
ONNX = "`must predict --model model.onnx IMAGE...`, or an ONNX runtime: input `image`, output `probability`"
OPEN_CLIP = """```python
import json, open_clip, safetensors.torch, safetensors
from PIL import Image, ImageOps

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")  # on a hub: "hf-hub:TEAM/NAME"
file = safetensors.safe_open("FOLDER/classifier.safetensors", "pt")
columns, classes = file.get_tensor("classifier"), json.loads(file.metadata()["classes"])
picture = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGBA")  # upright; what is transparent: white
picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
feature = model.eval().encode_image(preprocess(picture).unsqueeze(0), normalize=True)
probability = (file.get_tensor("logit_factor") * feature @ columns).softmax(-1)
print(classes[probability.argmax()])
```

The columns of the classifier are trained: the text tower does not make them any more. """


def make_model_card(
    description: Description, exported: dict[str, Any], metrics: Metrics | None, licence: str = ""
) -> str:
    """README.md. `exported`: the result of `must export`; `licence`: the hub's identifier, "" if none was given."""
    to, backbone, checked = exported.get("to", "onnx"), description.backbone, exported["check"]
    base, results = HUB_NAME.fullmatch(backbone), list_results(metrics)
    backbone = PurePath(backbone).name if PurePath(backbone).is_absolute() else backbone  # no folder of the owner's
    name = f"{backbone}, adapted to {len(description.classes)} classes"
    data = ModelCardData(
        license=licence or None, library_name=to, pipeline_tag=TASKS[to], base_model=base[1] if base else None,
        tags=["clip", "image-classification", "unsupervised", "must", "arxiv:2206.02967"],
        model_name=name if results else None, eval_results=results or None,
    )  # fmt: skip
    memory = description.provenance.memory if to == "onnx" else None
    none = "For an image that shows none of the classes it still gives one. A low probability is a hint, not a proof."
    if memory and memory.none:
        none = "Probabilities have a sum of at most 1: the rest is the probability of none of the classes."
    width = f", and `embedding`: float32 [N, {exported['dimensions']}], of length 1" if "dimensions" in exported else ""
    use = OPEN_CLIP if to == "open_clip" else f"{ONNX}{width}. "
    more = len(description.classes) - CLASSES_SHOWN
    classes = ", ".join(map(escape, description.classes[:CLASSES_SHOWN])) + (f" and {more} more" if more > 0 else "")
    body = f"""# {escape(name)}

{describe_origin(description, memory is not None)} Weights {description.weights_sha256 or "as published"}.

## Use

{use}{escape(describe_preprocess(get_preprocess(description)))}. Compared with \
PyTorch in float32 on {checked["images"]} images: the largest difference of a probability is \
{checked["largest_difference"]:.1e}.

## Classes

{classes}

## Quality

{describe_quality(description, to, metrics, exported.get("abstention"))}

## Limits

- {none}
- Where the zero-shot model was confidently wrong about a kind of image, this one can be more so.
- It was adapted to one domain: on other images it can be worse than the model it started from.
- It has the biases of CLIP's training images from the web; it is not meant for recognising people.
- The weights derive from {escape(f"{backbone} {description.pretrained}".strip())}: read the licence of those.
"""
    return ModelCard.from_template(data, template_str="---\n{{ card_data }}\n---\n\n{{ body }}", body=body).content


def describe_origin(description: Description, with_memory: bool) -> str:
    """How the model was made. `with_memory`: the export holds the memory."""
    provenance, memory, text = description.provenance, description.provenance.memory, "CLIP's zero-shot classifier"
    alpha = provenance.selection.alpha if provenance.selection else 1
    if provenance.config and alpha:
        kept = f", of which a share of {alpha:g} is kept" if alpha != 1 else ""
        text = f"CLIP, trained on unlabeled images by masked unsupervised self-training (MUST, arXiv 2206.02967){kept}"
    labels = "No labels were used"
    if memory and with_memory:
        text += f", with a memory of {pluralize(memory.images, 'unlabeled image')}"
        labels = f"People named the classes of {pluralize(memory.answers, 'image')}" if memory.answers else labels
    return f"An image classifier: {text}. {labels}."


def describe_quality(description: Description, to: str, metrics: Metrics | None, unsure: dict[str, Any] | None) -> str:
    """By labels, else by people's answers, which measure the model with its memory; else that it is not known.
    `unsure`: the stored threshold."""
    selection, text = description.provenance.selection, "Not measured: no metrics.json was given to `must export`."
    measured = selection and selection.measured
    if metrics and (model := metrics.adapted):
        lines = [f"Measured on {metrics.labelled:,} labelled images (split {escape(metrics.data.split)}):", ""]
        for key, title in (("top1", "top-1"), ("mean_per_class", "mean per class")):
            ends = " to ".join(map(format_percent, model.intervals.get(key, ())))
            before = f"; {metrics.baseline_name} {getattr(metrics.baseline, key):.1%}" if metrics.baseline else ""
            lines.append(f"- {title} {getattr(model, key):.1%}{f' ({ends})' if ends else ''}{before}")
        text = "\n".join(lines)
    elif measured and to == "onnx":
        share = measured.with_answers or measured.model
        text = (
            f"By {pluralize(measured.answers, 'answer')} of people about images drawn at random: {share.value:.1%} are "
            f"right ({share.low:.1%} to {share.high:.1%}, 95% interval), zero-shot {measured.zero_shot.value:.1%}."
        )
    elif metrics:
        text = f"Accuracy is unknown: none of the {metrics.images:,} evaluated images has a label."
    if unsure:
        text += (
            f"\n\nWith `--abstain -1` no class is named below a probability of {unsure['threshold']:.6g}: "
            f"{unsure['coverage']:.1%} of the images get one, {unsure['risk']:.1%} of these are wrong, with 95% "
            f"confidence at most {unsure['bound']:.1%} (by {unsure['by']})."
        )
    return text


def list_results(metrics: Metrics | None) -> list[EvalResult]:
    """The hub's: only of labelled images."""
    if not metrics or not metrics.adapted:
        return []
    numbers = (("top-1", metrics.adapted.top1), ("mean per class", metrics.adapted.mean_per_class))
    dataset: dict[str, Any] = {"dataset_type": "imagefolder", "dataset_name": "images of the model's owner"}
    dataset |= {"dataset_split": metrics.data.split, "dataset_revision": metrics.data.index_sha256}
    task = "image-classification"
    return [EvalResult(task, metric_type="accuracy", metric_name=n, metric_value=v, **dataset) for n, v in numbers]


def escape(value: Any) -> str:
    """Escapes untrusted text, such as names of classes and files, for Markdown and terminals."""
    text = " ".join(str(value).split())
    known = (c if c.isprintable() or "\udc80" <= c <= "\udcff" else "?" for c in text)  # these: bytes of no UTF-8
    return re.sub(r"([\\`*_{}\[\]<>#|!~])", r"\\\1", "".join(known))
