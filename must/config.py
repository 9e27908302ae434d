"""Every stage's parameters: one dataclass a stage, the only place where a name, type, default and help text stand.

The command line, the YAML files (``--config``), the presets and the pipeline components all read these classes.
Values are taken in the order flags, ``--config`` file, ``--preset``, default.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from must.parameters import StageConfig, convert, flag, param, require


@dataclass(kw_only=True)
class ShardConfig(StageConfig):
    summary = "Pack images into WebDataset shards with an index, ready to train on."
    example = "must shard --source photos/ --test-source labelled/ --labels folder --output shards/"

    source: str = param(
        "images: a folder or gs:// prefix, a .csv/.jsonl manifest with the columns path[,label][,split], a tar or zip "
        "archive, or WebDataset shards (a folder of them, or x-{000..099}.tar)",
        metavar="URI",
    )
    output: str = param("folder for the shards and index.json: a path or gs://bucket/prefix", metavar="URI")
    test_source: str = param(
        "more images, as --source, that become the split 'test': labelled images kept for reporting", "", metavar="URI"
    )
    labels: Literal["folder", "csv", "none"] = param(
        "where labels stand: the name of the folder an image lies in; the manifest's column label, or a WebDataset "
        "sample's cls or json; or nowhere",
        "none",
    )
    split: dict[str, float] = param(
        "share of --source for each split, e.g. train=0.9,test=0.1; an image's split is a hash of its content",
        factory=lambda: {"train": 1.0},
        metavar="NAME=SHARE,...",
    )
    samples_per_shard: int = param("images in a shard", 1000, metavar="N")
    max_rejected: float = param(
        "largest share of undecodable files; above it the run ends with code 2", 0.01, metavar="SHARE"
    )
    workers: int = param("processes that read and check images; 0 means one a core", 0, metavar="N")
    append: bool = param("add the source's new files to the shards in --output; old samples keep their places", False)
    drop_duplicates: bool = param(
        "keep one of several byte-identical images; across splits, test keeps it and train loses it in any case", False
    )
    validate: Literal["decode", "header"] = param(
        "decode every image once, which finds damaged ones, or read headers only, which is faster", "decode"
    )
    resize: int = param(
        "re-encode larger images as JPEG with this shorter side; 0 keeps every file byte for byte", 0, metavar="PX"
    )
    quality: int = param("JPEG quality of --resize", 90, metavar="1-95")
    max_pixels: int = param("images of more pixels (width x height) are rejected", 89_478_485, metavar="N")
    max_file_mb: int = param("files of more megabytes are rejected", 256, metavar="MB")

    def check_values(self) -> None:
        require(1 <= self.quality <= 95, "--quality must lie between 1 and 95")
        require(self.resize >= 0, "--resize must not be negative")
        require(1 <= self.max_pixels <= 178_956_970, "--max-pixels must lie between 1 and 178956970")
        require(self.max_file_mb >= 1, "--max-file-mb must be at least 1")
        require(self.samples_per_shard >= 1, "--samples-per-shard must be at least 1")
        require(0 <= self.max_rejected <= 1, "--max-rejected must lie between 0 and 1")
        require(self.workers >= 0, "--workers must not be negative")
        require(
            bool(self.split) and all(share >= 0 for share in self.split.values()), "--split needs shares of 0 or more"
        )
        total = sum(self.split.values())
        require(abs(total - 1) < 1e-6, f"--split must add up to 1, not {total:g}")
        for name in self.split:
            require(
                name.isidentifier() and name.islower(),
                f"--split: '{name}' is no split name; use lower-case letters, digits and _",
            )


@dataclass(kw_only=True)
class ClassifierConfig(StageConfig):
    summary = "Turn class names and prompt templates into zero-shot text classifier weights."
    example = "must classifier --classes classes.yaml --model ViT-B-16 --pretrained openai --output clip.safetensors"

    classes: str = param(
        "YAML file with classes: (names, or {name, prompts}) and templates: (strings with {}); or the set imagenet",
        metavar="FILE|SET",
    )
    model: str = param("an open_clip model name, or a folder with open_clip_config.json", metavar="NAME|PATH")
    pretrained: str = param(
        "an open_clip pretrained tag or a checkpoint file; nothing for a model folder, which holds its weights",
        "",
        metavar="TAG|PATH",
    )
    output: str = param("the classifier file to write (.safetensors)", metavar="FILE")
    device: str = param("auto, cpu, cuda or cuda:N", "auto")


@dataclass(kw_only=True)
class TrainConfig(StageConfig):
    """Defaults are the published method's (arXiv 2206.02967); presets set what differs from task to task."""

    summary = "Adapt the zero-shot classifier to unlabeled images with masked unsupervised self-training (MUST)."
    example = (
        "must train --shards shards/ --classifier classifier.safetensors --preset imagenet --output model/\n"
        "  torchrun --nproc-per-node=8 -m must train --shards ... (on several GPUs)"
    )

    # what goes in and out
    shards: str = param("folder of shards made by `must shard`", metavar="URI")
    classifier: str = param("classifier file made by `must classifier`; it names the model", metavar="FILE")
    output: str = param("folder for the adapted model (the bundle), the logs and the curves", metavar="DIR")
    split: str = param("split to train on; its labels, if there are any, are not read", "train", metavar="NAME")
    preset: str = param(
        "published settings of a data set: imagenet, sun397, food101, gtsrb, dtd, ucf101, pets, caltech101; or digits",
        "",
        metavar="NAME",
    )
    model: str = param("the model, if it must be another name or place than the classifier's", "", metavar="NAME|PATH")
    pretrained: str = param(
        "the pretrained weights, if in another place than the classifier says", "", metavar="TAG|PATH"
    )

    # optimisation
    epochs: int = param("passes over the split", 30, metavar="N")
    batch_size: int = param("global batch: images a step, over all processes", 1024, metavar="N")
    lr: float = param("learning rate for 256 images a step; it is scaled by batch size / 256", 2e-5)
    min_lr: float = param("the cosine schedule's end, scaled the same way", 1e-6)
    weight_decay: float = param("AdamW weight decay of everything but one-dimensional tensors", 0.05)
    layer_decay: float = param("learning rate of a layer, as a factor of the layer above", 0.65)
    seed: int = param("of sample order, augmentation, masks and new weights", 0, metavar="N")

    # the method
    confidence_threshold: float = param("teacher probability above which a pseudo-label counts", 0.7)
    fairness_weight: float = param("weight of the class balance term", 1.0)
    reconstruction_weight: float = param("weight of the masked image modelling term", 1.0)
    align_weight: float = param("weight of the global-local alignment term", 0.2)
    mask_patch_size: int = param("side of a masked cell in pixels; a multiple of the model's patch", 32, metavar="PX")
    mask_ratio: float = param("share of cells that are masked (rounded up)", 0.3)
    ema_decay_init: float = param("teacher's EMA decay at the first step", 0.999)
    ema_decay: float = param("teacher's EMA decay after the ramp", 0.9998)
    ema_warmup_steps: int = param("steps of the linear ramp between the two", 2000, metavar="N")
    logit_factor: str = param(
        "factor on the cosine logits: 100 as published, or 'model' for the model's own logit scale",
        "100",
        metavar="X|model",
    )
    loss_reduction: Literal["global", "rank"] = param(
        "mean of the self-training loss over the confident images of all processes, or per process (published)",
        "global",
    )

    # views
    weak_padding: int = param(
        "pixels of padding before the weak view's random crop: a shift for images no larger than the model's input",
        0,
        metavar="PX",
    )
    strong_scale: list[float] = param(
        "smallest and largest area of the strong view's random resized crop",
        factory=lambda: [0.3, 1.0],
        metavar="LOW,HIGH",
    )
    flip: float = param("probability of mirroring the strong view (0 for digits, text, traffic signs)", 0.5)
    randaugment: str = param(
        "RandAugment of the strong view in timm's notation; empty for none", "rand-m9-mstd0.5-inc1"
    )
    randaugment_ops: list[str] = param(
        "operations to draw from, by timm's names (Rotate, ShearX, ...); empty for all",
        factory=list,
        metavar="NAME,...",
    )

    # running
    device: str = param("auto, cpu, cuda or cuda:N", "auto")
    precision: Literal["auto", "fp32", "bf16"] = param(
        "auto: bf16 autocast on a GPU that has it, else fp32; weights, losses and EMA stay fp32", "auto"
    )
    workers: int = param("loader processes for each training process", 2, metavar="N")
    checkpoints: str = param("folder for checkpoints; OUTPUT/checkpoints if empty", "", metavar="URI")
    checkpoint_every: int = param("steps between checkpoints; 0: once an epoch", 0, metavar="N")
    keep_checkpoints: int = param("newest checkpoints to keep", 2, metavar="N")
    resume: bool = param("go on from the newest checkpoint if there is one; --no-resume starts afresh", True)
    save: Literal["teacher", "student"] = param("which of the two becomes the model", "teacher")
    log_every: int = param("steps between log lines", 10, metavar="N")
    timeout: int = param("seconds after which a process that waits for a lost one gives up", 600, metavar="S")

    def check_values(self) -> None:
        for name in ("epochs", "batch_size", "mask_patch_size", "keep_checkpoints", "log_every", "timeout"):
            require(getattr(self, name) >= 1, f"{flag(name)} must be at least 1")
        for name in (
            "fairness_weight",
            "reconstruction_weight",
            "align_weight",
            "weight_decay",
            "workers",
            "ema_warmup_steps",
            "lr",
            "weak_padding",
            "checkpoint_every",
        ):
            require(getattr(self, name) >= 0, f"{flag(name)} must not be negative")
        require(0 <= self.confidence_threshold < 1, "--confidence-threshold must be at least 0 and below 1")
        require(
            0 < self.mask_ratio < 1,
            "--mask-ratio must lie between 0 and 1; with nothing masked two of the losses are undefined",
        )
        require(
            0 <= self.ema_decay_init <= 1 and 0 <= self.ema_decay <= 1,
            "--ema-decay and --ema-decay-init must lie between 0 and 1",
        )
        require(0 < self.layer_decay <= 1, "--layer-decay must be above 0 and at most 1")
        require(0 <= self.flip <= 1, "--flip must lie between 0 and 1")
        require(
            len(self.strong_scale) == 2 and 0 < self.strong_scale[0] <= self.strong_scale[1] <= 1,
            "--strong-scale needs two areas, such as 0.3,1",
        )
        if self.logit_factor != "model":
            require(
                convert(self.logit_factor, float, "--logit-factor") > 0,
                "--logit-factor must be a positive number or 'model'",
            )


@dataclass(kw_only=True)
class EvaluateConfig(StageConfig):
    summary = "Measure the adapted model against the zero-shot one; write metrics.json and report.html."
    example = (
        "must evaluate --model model/ --baseline classifier.safetensors --shards shards/ --split test --output report/"
    )

    model: str = param("the bundle written by `must train`", metavar="BUNDLE")
    baseline: str = param(
        "what it is compared with: a classifier file (its zero-shot model), or another bundle",
        "",
        metavar="FILE|BUNDLE",
    )
    shards: str = param("folder of shards made by `must shard`", metavar="URI")
    split: str = param("split to evaluate on", "test", metavar="NAME")
    output: str = param("folder for metrics.json, predictions.csv and report.html", metavar="URI")
    labels: Literal["auto", "ignore"] = param(
        "auto: use the labels there are; ignore: evaluate as if there were none", "auto"
    )
    few_shot: list[int] = param(
        "also fit a linear probe and Tip-Adapter on so many labelled images a class, e.g. 1,2,4,8,16",
        factory=list,
        metavar="N,...",
    )
    few_shot_split: str = param("split that --few-shot takes its labelled images from", "train", metavar="NAME")
    few_shot_seeds: int = param("draws of labelled images that --few-shot averages over", 3, metavar="N")
    batch_size: int = param("images a forward pass", 256, metavar="N")
    workers: int = param("loader processes", 2, metavar="N")
    device: str = param("auto, cpu, cuda or cuda:N", "auto")
    timeout: int = param("seconds after which a process that waits for a lost one gives up", 600, metavar="S")

    def check_values(self) -> None:
        require(self.batch_size >= 1, "--batch-size must be at least 1")
        require(self.workers >= 0, "--workers must not be negative")
        require(all(n >= 1 for n in self.few_shot), "--few-shot needs numbers of 1 or more")
        require(self.few_shot_seeds >= 1, "--few-shot-seeds must be at least 1")
        require(self.timeout >= 1, "--timeout must be at least 1")
        require(not self.few_shot or bool(self.baseline), "--few-shot needs --baseline, whose features it uses")
        require(
            not self.few_shot or self.few_shot_split != self.split,
            f"--few-shot-split {self.few_shot_split}: is the split that is evaluated; take another one",
        )


@dataclass(kw_only=True)
class ExportConfig(StageConfig):
    summary = "Write the model as ONNX, checked against PyTorch."
    example = "must export --model model/ --output onnx/"

    model: str = param("the bundle written by `must train`", metavar="BUNDLE")
    output: str = param("folder for model.onnx, labels.txt and the model card", metavar="URI")
    precision: Literal["fp32", "fp16", "int8"] = param("of weights and arithmetic; outputs are float32", "fp32")
    input: Literal["normalized", "uint8"] = param(
        "what the graph takes: float32 [N,3,S,S], normalised, or uint8 [N,S,S,3] pixels that it normalises itself",
        "normalized",
    )
    shards: str = param(
        "shards whose images the export is checked with, and int8 is calibrated on; random pixels without",
        "",
        metavar="URI",
    )
    split: str = param("split of --shards to take images from", "train", metavar="NAME")
    images: int = param("images of --shards to check and calibrate with", 256, metavar="N")
    min_agreement: float = param(
        "smallest share of images that must get PyTorch's class; 0 means 1 for fp32, 0.99 for fp16, 0.97 for int8", 0.0
    )
    metrics: str = param("metrics.json of `must evaluate`, for the model card", "", metavar="FILE")
    triton: str = param(
        "also write a Triton model repository and a KServe manifest for a model of this name", "", metavar="NAME"
    )

    def check_values(self) -> None:
        require(self.images >= 1, "--images must be at least 1")
        require(0 <= self.min_agreement <= 1, "--min-agreement must lie between 0 and 1")
        require(
            not self.triton or re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", self.triton) is not None,
            f"--triton {self.triton}: must be a name that Kubernetes takes: small letters, digits and -, at most 63",
        )


@dataclass(kw_only=True)
class PredictConfig(StageConfig):
    summary = "Classify images with the ONNX file alone (no PyTorch)."
    example = "must predict --model onnx/model.onnx photo.jpg more-photos/"

    model: str = param("model.onnx, or the folder it lies in", metavar="FILE|DIR")
    images: list[str] = param(
        "images, folders or globs; - reads names from standard input", metavar="IMAGE|DIR", positional=True
    )
    top_k: int = param("classes to print for an image", 1, metavar="K")
    batch_size: int = param("images a forward pass", 32, metavar="N")
    output: str = param("CSV or JSONL file to write instead of the table on the terminal", "", metavar="FILE")
    threads: int = param("threads of a forward pass; 0 means one a core", 0, metavar="N")

    def check_values(self) -> None:
        require(self.top_k >= 1, "--top-k must be at least 1")
        require(self.batch_size >= 1, "--batch-size must be at least 1")
        require(self.threads >= 0, "--threads must not be negative")
        require(bool(self.images), "no image given")
        require(
            not self.output or self.output.lower().endswith((".csv", ".jsonl")),
            f"--output {self.output}: the name must end in .csv or .jsonl",
        )


@dataclass(kw_only=True)
class DemoConfig(StageConfig):
    summary = "Write the bundled data set (handwritten digits), class names and tiny CLIP (computer fonts) to a folder."
    example = "must demo --output demo/"

    output: str = param("folder to write to", metavar="DIR")


STAGES: Final[dict[str, type[StageConfig]]] = {
    "shard": ShardConfig,
    "classifier": ClassifierConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "predict": PredictConfig,
    "demo": DemoConfig,
}
