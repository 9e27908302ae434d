"""README.md of an export: a model card for people and hubs, with what was measured and nothing else."""

import re
from pathlib import PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from must.base.text import pluralize
from must.data.image.preprocess import describe_preprocess
from must.evaluation.result import Accuracy, Metrics, format_percent
from must.method.model.description import Description, get_preprocess

README_FILE = "README.md"
CLASSES_SHOWN = 100
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
    to, backbone = exported.get("to", "onnx"), name_backbone(description)
    name = f"{backbone}, adapted to {len(description.classes)} classes"
    results, base = list_results(metrics), find_base_model(description)
    data = ModelCardData(
        license=licence or None, library_name=to, pipeline_tag=TASKS[to],
        tags=["clip", "image-classification", "unsupervised", "must", "arxiv:2206.02967"],
        base_model=base, base_model_relation="finetune" if base and description.provenance else None,
        model_name=name if results else None, eval_results=results or None,
    )  # fmt: skip
    memory, preprocess = description.provenance.memory, describe_preprocess(get_preprocess(description))
    use = "`must predict --model model.onnx IMAGE...`, or an ONNX runtime: input `image`, output `probability`"
    width = f", and `embedding`: float32 [N, {exported['dimensions']}], of length 1" if "dimensions" in exported else ""
    use = OPEN_CLIP if to == "open_clip" else f"{use}{width}. "
    none = "- For an image that shows none of the classes it still gives one. A low probability is a hint, not a proof."
    if to == "onnx" and memory and memory.none:
        none = "- Probabilities have a sum of at most 1: the rest is the probability of none of the classes."
    more = len(description.classes) - CLASSES_SHOWN
    classes = ", ".join(map(escape, description.classes[:CLASSES_SHOWN])) + (f" and {more} more" if more > 0 else "")
    unsure, abstain = exported.get("abstention"), ""
    if unsure:
        abstain = (
            f"\n\nWith `--abstain -1` no class is named below a probability of {unsure['threshold']:.6g}: "
            f"{unsure['coverage']:.1%} of the images get one, {unsure['risk']:.1%} of these are wrong, with 95% "
            f"confidence at most {unsure['bound']:.1%} (by {unsure['by']})."
        )
    body = f"""# {escape(name)}

{describe_origin(description, with_memory=to == "onnx")}
Weights {description.weights_sha256 or "as published"}.

## Use

{use}{escape(preprocess)}. Compared with PyTorch in float32 on {exported["check"]["images"]} images: the largest \
difference of a probability is {exported["check"]["largest_difference"]:.1e}.

## Classes

{classes}

## Quality

{describe_quality(description, to, metrics)}{abstain}

## Limits

{none}
- Where the zero-shot model was confidently wrong about a kind of image, this one can be more so.
- It was adapted to one domain: on other images it can be worse than the model it started from.
- It has the biases of CLIP's training images from the web; it is not meant for recognising people.

## Licence

The weights derive from {escape(f"{backbone} {description.pretrained}".strip())}, whose licence is: \
{find_backbone_licence(description.pretrained)}. Check it before use, and the rights to the images.
"""
    return ModelCard.from_template(data, template_str="---\n{{ card_data }}\n---\n\n{{ body }}", body=body).content


def describe_origin(description: Description, with_memory: bool) -> str:
    """How the model was made. `with_memory`: the export holds the memory, if there is one."""
    provenance, memory = description.provenance, description.provenance.memory
    selection, text = provenance.selection, "An image classifier: CLIP's zero-shot classifier"
    if provenance.config and not (selection and selection.alpha == 0):
        kept = f", of which a share of {selection.alpha:g} is kept" if selection and selection.alpha != 1 else ""
        method = "masked unsupervised self-training (MUST, arXiv 2206.02967)"
        text = f"An image classifier: CLIP, trained on unlabeled images by {method}{kept}"
    if not memory or not with_memory:
        return f"{text}. No labels were used."
    answers = f"People named the classes of {pluralize(memory.answers, 'image')}" if memory.answers else ""
    return (
        f"{text}, with a memory of {pluralize(memory.images, 'unlabeled image')}. {answers or 'No labels were used'}."
    )


def describe_quality(description: Description, to: str, metrics: Metrics | None) -> str:
    """By labels, else by people's answers, which measure the model with its memory; else that it is not known."""
    selection = description.provenance.selection
    measured = selection and selection.measured
    if metrics and (model := metrics.adapted):
        lines = [f"Measured on {metrics.labelled:,} labelled images (split {escape(metrics.data.split)}):", ""]
        lines += [f"| | {metrics.baseline_name} | adapted |", "|---|---|---|"]
        for key, title in (("top1", "top-1"), ("mean_per_class", "mean per class")):
            cells = (describe_accuracy(one, key) for one in (metrics.baseline, model))
            lines.append(f"| {title} | {' | '.join(cells)} |")
        return "\n".join(lines)
    if measured and to == "onnx":
        share = measured.with_answers or measured.model
        return (
            f"By {pluralize(measured.answers, 'answer')} of people about images drawn at random: {share.value:.1%} are "
            f"right ({share.low:.1%} to {share.high:.1%}, 95% interval), zero-shot {measured.zero_shot.value:.1%}."
        )
    if metrics:
        return f"Accuracy is unknown: none of the {metrics.images:,} evaluated images has a label."
    return "Not measured: no metrics.json was given to `must export --metrics`."


def describe_accuracy(model: Accuracy | None, key: str) -> str:
    ends = [format_percent(end) for end in model.intervals.get(key, ())] if model else []
    return format_percent(getattr(model, key)) + (f" ({' to '.join(ends)})" if ends else "") if model else ""


def list_results(metrics: Metrics | None) -> list[EvalResult]:
    """The hub's: only of labelled images."""
    if not metrics or not metrics.adapted:
        return []
    numbers = (("top-1", metrics.adapted.top1), ("mean per class", metrics.adapted.mean_per_class))
    dataset: dict[str, Any] = {"dataset_type": "imagefolder", "dataset_name": "images of the model's owner"}
    dataset |= {"dataset_split": metrics.data.split, "dataset_revision": metrics.data.index_sha256}
    task = "image-classification"
    return [EvalResult(task, metric_type="accuracy", metric_name=n, metric_value=v, **dataset) for n, v in numbers]


def find_base_model(description: Description) -> str | None:
    """The backbone's repository on the hub, from its name or from open_clip."""
    import open_clip

    name = description.backbone.removeprefix("hf-hub:")
    if name == description.backbone:
        tag = description.pretrained
        known = open_clip.get_pretrained_cfg(name.replace("/", "-"), tag) if tag else {}
        name = (known or {}).get("hf_hub", "").strip("/")
    return name if HUB_NAME.fullmatch(name) else None


def find_backbone_licence(pretrained: str) -> str:
    known = (text for start, text in LICENCES if pretrained.lower().startswith(start))
    return next(known, "not known to us; ask the publisher of the weights")


def name_backbone(description: Description) -> str:
    """Of a folder on the owner's machine the last part."""
    name = description.backbone
    return PurePath(name).name if PurePath(name).is_absolute() else name


def escape(value: Any) -> str:
    """Escapes untrusted text, such as names of classes and files, for Markdown and terminals."""
    text = " ".join(str(value).split())
    known = (c if c.isprintable() or "\udc80" <= c <= "\udcff" else "?" for c in text)  # these: bytes of no UTF-8
    return re.sub(r"([\\`*_{}\[\]<>#|!~])", r"\\\1", "".join(known))
