"""The model card: description, measured quality, and limits of a model.

The card for a hub (README.md) begins with a YAML block of the hub's metadata.
"""

import re
from typing import Any

import yaml

from must.data.image.preprocess import describe_preprocess
from must.evaluation.result import Interval, Metrics
from must.method.model.bundle import Description, preprocess_of

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


def model_card(description: Description, exported: dict[str, Any], metrics: Metrics | None, usage: str = "") -> str:
    """Markdown. `exported` is the result of `must export`, `metrics` that of `must evaluate`, if any; `usage`, also
    Markdown, describes the use in another library."""
    parts = [
        f"# {escape(description.backbone)}, adapted to {len(description.classes)} classes",
        "An image classifier: CLIP, fine-tuned on unlabeled images of the target domain with masked unsupervised "
        "self-training (MUST, arXiv 2206.02967). No labels were used for training.",
        section("Use", library_use(description, exported, usage) if usage else onnx_use(description, exported)),
        section("Classes", classes(description)),
        section("Training", training(description)),
        section("Quality", quality(metrics)),
        *([section("None of these", unsure)] if (unsure := abstention(exported.get("abstention"))) else []),
        section("Limits", LIMITS),
        section("Licence", licence(description)),
    ]
    return "\n\n".join(parts) + "\n"


LIMITS = """\
- It answers with one of its classes for every image, also for one that shows none of them. A low probability is a
  hint, not a proof.
- It learned from its own confident guesses. Where the zero-shot model was confidently wrong about a kind of image, the
  adapted one can be more so: look at the classes that lost in the report.
- It was adapted to one domain. On other images it can be worse than the model it started from.
- It carries the biases of CLIP's training images from the web; it is not meant for recognising people."""


EMBEDDINGS = (
    " An image's embedding is its feature as the classifier reads it, of length 1: the scalar product of two is their "
    "cosine, and images that are similar to this model have a high one."
)


def onnx_use(description: Description, exported: dict[str, Any]) -> str:
    check = exported["check"]
    second = f", and `embedding`: float32 [N, {exported['dimensions']}]" if "dimensions" in exported else ""
    close = f", smallest cosine of an embedding {check['cosine']:.6f}" if "cosine" in check else ""
    return (
        f"`must predict --model model.onnx IMAGE...` or any ONNX runtime: input `image`, output `probability`{second}. "
        f"{describe_preprocess(preprocess_of(description))}.{EMBEDDINGS if second else ''}\n\n"
        f"Arithmetic: {exported['arithmetic']}; {exported['megabytes']:.1f} MB. Compared with PyTorch in float32 on "
        f"{check['images']} images ({escape(exported['checked_on'])}): the same class for {check['agreement']:.2%}, "
        f"largest difference of a probability {check['largest_difference']:.1e}{close}."
    )


def library_use(description: Description, exported: dict[str, Any], usage: str) -> str:
    check = exported["check"]
    return (
        f"{usage}\n\nThree things that go wrong otherwise:\n\n"
        "- **The classifier is trained.** Its columns began as text features of the class names and moved with the "
        "images: the text tower does not make them any more. Take them from classifier.safetensors.\n"
        f"- **The logit factor is {description.logit_factor:g}.** Multiply cosines with it before a softmax; "
        "another factor keeps the class and changes every probability.\n"
        f"- **Preprocessing:** {describe_preprocess(preprocess_of(description))}.\n\n"
        f"Compared with the model as it was trained, on {check['images']} images ({escape(exported['checked_on'])}): "
        f"largest difference of a logit {exported['largest_logit_difference']:.1e}, of a probability "
        f"{check['largest_difference']:.1e}."
    )


def classes(description: Description) -> str:
    names = ", ".join(escape(name) for name in description.classes[:CLASSES_SHOWN])
    more = len(description.classes) - CLASSES_SHOWN
    return names + (f" and {more} more (labels.txt)" if more > 0 else "")


def training(description: Description) -> str:
    provenance = description.provenance
    if not provenance:
        return "Not adapted: the zero-shot model."
    config = provenance.config
    rows = [
        ("backbone", f"{description.backbone} {description.pretrained}".strip()),
        ("index of the images (sha256)", provenance.index_sha256),
        ("processes", provenance.processes),
        ("git revision", provenance.git_revision),
        *(
            (f"parameter {name}", config[name])
            for name in ("preset", "epochs", "batch_size", "lr", "seed")
            if name in config
        ),
        *((name, value) for name, value in provenance.versions.items()),
    ]
    return "\n".join(f"- {escape(name)}: {escape(value)}" for name, value in rows if value not in (None, ""))


def quality(metrics: Metrics | None) -> str:
    if not metrics:
        return "Not measured: no metrics.json was given to `must export --metrics`."
    data, compared = metrics.data, metrics.label_free.compared
    where = f"split '{escape(data.split)}', index sha256 {escape(data.index_sha256)}"
    if not metrics.adapted:
        lines = [f"Accuracy is unknown: none of the {metrics.images:,} images has a label ({where})."]
        if compared:
            lines.append(f"{compared.agreement:.1%} of the images keep the zero-shot class.")
        return " ".join(lines)
    lines = [f"Measured on {metrics.labelled:,} labelled images ({where}); 95% bootstrap intervals.", ""]
    lines += ["| | " + metrics.baseline_name + " | adapted |", "|---|---|---|"]
    for key, title in (("top1", "top-1"), ("mean_per_class", "mean per class"), ("ece", "calibration error")):
        models = (metrics.baseline, metrics.adapted)
        cells = [f"{getattr(model, key):.1%} ({spread(model.intervals[key])})" if model else "" for model in models]
        cells.insert(0, title)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def abstention(fields: dict[str, Any] | None) -> str:
    """Describes the threshold in the file; '' if there is none."""
    if not fields:
        return ""
    how = (
        f"measured with labels: {fields['risk']:.1%} wrong, with 95% confidence at most {fields['bound']:.1%}"
        if fields["by"] == "labels"
        else f"estimated without labels: {fields['risk']:.1%} wrong, which promises nothing"
    )
    return (
        f"Below a probability of {fields['threshold']:.3f} no class should be named (`must predict --abstain -1`; "
        f"`must serve` does so by itself). {fields['coverage']:.1%} of the images get a class then; of those, {how}. "
        "It was chosen with the arithmetic of PyTorch in float32."
    )


def licence(description: Description) -> str:
    tag = description.pretrained.lower()
    known = next((text for start, text in LICENCES if tag.startswith(start)), None)
    weights = known or "not known to us; ask the publisher of the weights"
    source = escape(f"{description.backbone} {description.pretrained}".strip())
    return (
        f"The adapted weights derive from {source}, whose licence is: {weights}. "
        "Check it before use, and the rights to the images."
    )


def section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}"


def spread(interval: Interval) -> str:
    return f"{interval[0]:.1%} to {interval[1]:.1%}"


def escape(value: Any) -> str:
    """Escapes untrusted text, such as names of classes and files, for Markdown and terminals."""
    return "".join(escape_character(character) for character in " ".join(str(value).split()))


def escape_character(character: str) -> str:
    if character in r"\`*_{}[]<>#|!~":
        return f"\\{character}"
    printable = character.isprintable() or "\udc80" <= character <= "\udcff"  # a byte that is not UTF-8
    return character if printable else "?"


TASKS = {
    "open_clip": "zero-shot-image-classification",
    "transformers": "zero-shot-image-classification",
    "onnx": "image-classification",
}
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)


def hub_card(
    description: Description, exported: dict[str, Any], metrics: Metrics | None, usage: str, licence: str
) -> str:
    """Markdown with front matter.

    Args:
        exported: the result of `must export`; its `to` is the library.
        metrics: of `must evaluate`; without them, the card has no metrics.
        usage: Markdown, how to classify with the folder.
        licence: the hub's identifier; empty: the card states none.
    """
    to = exported.get("to", "onnx")
    values: dict[str, Any] = {
        "library_name": to,
        "pipeline_tag": TASKS[to],
        "tags": ["clip", "image-classification", "unsupervised", "must", "arxiv:2206.02967"],
        **({"license": licence} if licence else {}),
        **base_model(description),
        **model_index(description, metrics),
    }
    front = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{model_card(description, exported, metrics, usage)}"


def base_model(description: Description) -> dict[str, Any]:
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


def model_index(description: Description, metrics: Metrics | None) -> dict[str, Any]:
    """The hub's model-index: only for metrics on labelled images."""
    if not metrics or not metrics.adapted:
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
    """Markdown with Python code that classifies a picture with an exported folder; `feature` has length 1, [1, D]."""
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
