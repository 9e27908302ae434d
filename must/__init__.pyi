"""Adapt CLIP to your own images without labels: masked unsupervised self-training (arXiv 2206.02967)."""
# Made by `make reference` from the stages' parameters.

from os import PathLike
from typing import Any, Literal, TypeAlias

from must.api.model import Adapted as Adapted
from must.api.model import load as load
from must.api.results import Classifier as Classifier
from must.api.results import Demo as Demo
from must.api.results import Evaluated as Evaluated
from must.api.results import Exported as Exported
from must.api.results import Planned as Planned
from must.api.results import Predicted as Predicted
from must.api.results import Refined as Refined
from must.api.results import Shards as Shards
from must.api.results import Trained as Trained
from must.base.errors import MustError as MustError
from must.base.errors import TransientError as TransientError
from must.base.errors import UserError as UserError
from must.evaluation.gate import Decision as Decision
from must.registry.promote import Latest as Latest

Text: TypeAlias = str | PathLike[str]

__version__: str
__all__ = [
    "MustError",
    "TransientError",
    "UserError",
    "adapt",
    "classifier",
    "demo",
    "evaluate",
    "export",
    "gate",
    "load",
    "plan",
    "predict",
    "promote",
    "quickstart",
    "refine",
    "review",
    "serve",
    "shard",
    "sort",
    "train",
]

def adapt(
    images: Any,
    *,
    classes: Any,
    output: Text,
    test_images: Text = "",
    model: Text = "ViT-B-16",
    train: Literal["auto", "yes", "no"] = "auto",
    verbose: bool = False,
    pretrained: Text = "",
    settings: dict[str, Any] = {},
    max_rejected: float = 0.01,
    device: Text = "auto",
    rename: dict[str, str] = {},
    drop: bool = False,
    again: bool = False,
    **training: Any,
) -> Adapted:
    """Adapt CLIP to images without labels: one pass gives a model, labels, a report; with a GPU, training follows."""

def shard(
    source: Text,
    *,
    output: Text,
    test_source: Text = "",
    labels: Literal["folder", "csv", "none"] = "none",
    split: dict[str, float] = {"train": 1.0},
    workers: int = 0,
    append: bool = False,
    image_column: Text = "",
    label_column: Text = "",
    samples_per_shard: int = 1000,
    max_rejected: float = 0.01,
    part: Text = "1/1",
    drop_duplicates: bool = False,
    max_pixels: int = 89478485,
    max_file_mb: int = 256,
) -> Shards:
    """Pack images into WebDataset shards with an index, ready to train on."""

def classifier(
    *,
    classes: Text | list[str],
    model: Text,
    output: Text,
    pretrained: Text = "",
    model_store: Text = "",
    device: Text = "auto",
) -> Classifier:
    """Turn class names and prompt templates into zero-shot text classifier weights."""

def plan(
    *,
    shards: Text,
    classifier: Text,
    preset: Text = "",
    epochs: int = 30,
    batch_size: int = 1024,
    workers: int | Literal["auto"] = "auto",
    device: Text = "auto",
    index_sha256: Text = "",
    split: Text = "train",
    accumulate: int = 1,
    shuffle_window: int = 16,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    activation_checkpointing: bool = False,
    timeout: int = 600,
    json: Text = "",
) -> Planned:
    """Estimate steps, hours, memory and disk of `must train` on this machine; trains nothing."""

def train(
    *,
    shards: Text,
    classifier: Text,
    output: Text,
    preset: Text = "",
    epochs: int = 30,
    batch_size: int = 1024,
    workers: int | Literal["auto"] = "auto",
    device: Text = "auto",
    lr: float = 2e-05,
    index_sha256: Text = "",
    split: Text = "train",
    accumulate: int = 1,
    shuffle_window: int = 16,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    activation_checkpointing: bool = False,
    timeout: int = 600,
    min_lr: float = 1e-06,
    weight_decay: float = 0.05,
    layer_decay: float = 0.65,
    seed: int = 0,
    pseudo_labels: Literal["teacher", "propagated"] = "teacher",
    confidence_threshold: float = 0.7,
    confident_share: float = 0.0,
    fairness_weight: float = 1.0,
    class_prior: Literal["uniform", "given"] = "uniform",
    reconstruction_weight: float = 1.0,
    align_weight: float = 0.2,
    mask_patch_size: int = 32,
    mask_ratio: float = 0.3,
    mask_token: Literal["random", "mean"] = "random",
    ema_decay_init: float = 0.999,
    ema_decay: float = 0.9998,
    ema_warmup_steps: int = 2000,
    logit_factor: Text = "100",
    loss_reduction: Literal["global", "rank"] = "global",
    weak_padding: int = 0,
    strong_scale: list[float] = [0.3, 1.0],
    flip: float = 0.5,
    randaugment: Text = "rand-m9-mstd0.5-inc1",
    randaugment_ops: list[str] = [],
    checkpoints: Text = "",
    checkpoint_every: int = 0,
    checkpoint_seconds: int = 0,
    keep_checkpoints: int = 2,
    resume: bool = True,
    alpha: float = 1.0,
    features: Text = "",
    log_every: int = 10,
) -> Trained:
    """Adapt the zero-shot classifier to unlabeled images with masked unsupervised self-training (MUST)."""

def refine(
    model: Text,
    *,
    shards: Text,
    classifier: Text,
    output: Text,
    answers: Text = "",
    device: Text = "auto",
    index_sha256: Text = "",
    split: Text = "train",
    features: Text = "",
    alpha: float | Literal["auto"] = "auto",
    risk: float = 0.05,
    promise: Literal["set", "accepted"] = "set",
    limit: int = 1000000,
    memory_images: int = 10000,
    batch_size: int = 256,
    workers: int = 2,
) -> Refined:
    """Give the model a memory of the unlabeled images and of people's answers, and the images better labels."""

def review(
    model: Text,
    *,
    baseline: Text,
    shards: Text,
    output: Text,
    split: Text = "train",
    features: Text = "",
    add: Text = "",
    browser: bool = True,
    who: Text = "",
    limit: int = 20000,
    host: Text = "127.0.0.1",
    port: int = 0,
    seed: int = 0,
    batch_size: int = 256,
    workers: int = 2,
    device: Text = "auto",
) -> Any:
    """Ask a person for classes of images in a browser; the answers measure accuracy and correct labels."""

def evaluate(
    model: Text,
    *,
    shards: Text,
    output: Text,
    baseline: Text = "",
    split: Text = "test",
    device: Text = "auto",
    index_sha256: Text = "",
    labels: Literal["auto", "ignore"] = "auto",
    features: Text = "",
    refined: Text = "",
    risk: float = 0.05,
    batch_size: int = 256,
    workers: int = 2,
    timeout: int = 600,
) -> Evaluated:
    """Measure the adapted model against the zero-shot one; write metrics.json and report.html."""

def export(
    model: Text,
    *,
    output: Text,
    to: Literal["onnx", "open_clip"] = "onnx",
    classifier: Text = "",
    shards: Text = "",
    metrics: Text = "",
    license: Text = "",
    precision: Literal["fp32", "int8"] = "fp32",
    input: Literal["normalized", "uint8"] = "normalized",
    embeddings: bool = False,
    index_sha256: Text = "",
    split: Text = "train",
    limit: int = 256,
    min_agreement: float = 0.0,
) -> Exported:
    """Write the model as ONNX, or as a folder that open_clip loads; checked against PyTorch."""

def gate(
    model: Text = "",
    *,
    metrics: Text,
    output: Text = "",
    gate: Literal["auto", "labelled", "label-free", "none"] = "auto",
    metric: Literal["top1", "top5", "mean_per_class"] = "top1",
    min_gain: float = 0.0,
    min_images: int = 100,
) -> Decision:
    """Decide from metrics.json whether the adapted model may replace the one in use, and say why."""

def promote(
    model: Text = "",
    *,
    registry: Text,
    name: Text,
    onnx: Text = "",
    metrics: Text = "",
    decision: Text = "",
    champion: Text = "",
    version: Text = "",
    rollback: bool = False,
    to: Text = "",
    list: bool = False,
) -> Latest:
    """Copy a model to the registry and make it the champion, the one in use; --rollback restores the one before."""

def predict(
    *,
    model: Text,
    images: list[str],
    classes: Text | list[str] = "",
    top_k: int = 1,
    output: Text = "",
    abstain: float = 0.0,
    part: Text = "",
    known: Text = "",
    relabel: bool = False,
    embeddings: bool = False,
    batch_size: int = 32,
    workers: int = 0,
    threads: int = 0,
    device: Text = "auto",
) -> Predicted:
    """Classify images, few or many, with the ONNX file alone (no PyTorch) or with a bundle."""

def serve(
    model: Text = "",
    *,
    registry: Text = "",
    name: Text = "must",
    port: int = 8080,
    poll: float = 10.0,
    top_k: int = 5,
    abstain: float = 0.0,
    host: Text = "127.0.0.1",
    batch_size: int = 32,
    threads: int = 0,
    max_body: float = 16.0,
    max_images: int = 64,
    max_pixels: float = 40.0,
    drain: float = 5.0,
) -> Any:
    """Serve the ONNX file, or a registry's champion, over HTTP: pictures in, names out (no PyTorch)."""

def sort(
    model: Text,
    *,
    shards: Text,
    output: Text,
    labels: Text,
    copy: bool = False,
) -> Any:
    """Put the labelled images into a folder for each class, as links or copies."""

def demo(
    *,
    output: Text,
) -> Demo:
    """Write the bundled data set (handwritten digits), class names and tiny CLIP (computer fonts) to a folder."""

def quickstart(
    *,
    output: Text = "quickstart",
) -> Any:
    """Show it all with the bundled digits: one pass, the page for answers in the browser, and what they change."""
