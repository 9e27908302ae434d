"""Parameters of the stages that make a model: `must shard`, `classifier`, `train` and `plan`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from must.base.errors import UserError
from must.base.parameters import StageConfig, convert, list_parameters, load, param, require
from must.config import defaults


@dataclass(kw_only=True)
class ShardConfig(StageConfig):
    example = "must shard photos/ --test-source labelled/ --labels folder --output shards/"

    source: str = param(
        "images: a folder or a bucket's prefix, a .csv/.jsonl manifest with the columns path[,label][,split], a tar or "
        "zip archive, WebDataset shards (a folder of them, or x-{000..099}.tar), or .parquet tables",
        metavar="URI",
        group="input and output",
        often=True,
        bare=True,
    )
    output: str = param(
        "folder for the shards and index.json: a path or a bucket's URI", metavar="URI", often=True, kind="apart"
    )
    test_source: str = param(
        "more images, as --source, that become the split 'test', for reporting only", "", metavar="URI", often=True
    )
    labels: Literal["folder", "csv", "none"] = param(
        "where labels are: the name of the folder an image is in; the column label of a manifest or table, or a "
        "WebDataset sample's cls or json; or nowhere",
        "none",
        often=True,
    )
    split: dict[str, float] = param(
        "share of --source for each split, e.g. train=0.9,test=0.1; an image's split is a hash of its content",
        factory=lambda: {"train": 1.0},
        metavar="NAME=SHARE,...",
        often=True,
    )
    image_column: str = param(
        "a table's column of images, or of names of image files, if it has none of the usual names", "", metavar="NAME"
    )
    label_column: str = param(
        "a table's column of labels, if it has none of the usual names, for --labels csv", "", metavar="NAME"
    )
    samples_per_shard: int = param("images in a shard", 1000, group="shards", at_least=1)
    max_rejected: float = param(
        "largest share of undecodable files; code 2 above it, if they are more than five",
        0.01,
        metavar="SHARE",
        group="images",
        between=(0, 1),
    )
    workers: int = param(
        "processes to read and check images; 0: one a core", 0, group="how it runs", often=True, at_least=0
    )
    part: str = param(
        "work as part I of N: pack this part's share of the files, by a hash of their names; the same command without "
        "--part then makes the shards of all parts",
        "1/1",
        metavar="I/N",
    )
    append: bool = param(
        "add the source's new images to the shards in --output; old samples keep their places", False, often=True
    )
    drop_duplicates: bool = param(
        "deduplication: keep one of identical images; across splits, test always keeps it", False, group="images"
    )
    max_pixels: int = param("images of more pixels (width x height) are rejected", 89_478_485, between=(1, 178_956_970))
    max_file_mb: int = param("files of more megabytes are rejected", 256, metavar="MB", at_least=1)

    def check_values(self) -> None:
        defaults.parse_part(self.part)
        require(
            not self.test_source or self.labels != "none",
            "--test-source: test images need labels to measure with; give --labels folder or csv",
        )
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
    example = "must classifier --classes classes.yaml --model ViT-B-16/datacomp_xl_s13b_b90k --output clip.safetensors"

    classes: str | list[str] = param(
        "the class names, cat,dog,horse; a .txt with a name a line; a YAML file with classes: (names, or {name, "
        "prompts}) and templates: (strings with {}); or the set imagenet",
        metavar="NAMES|FILE|SET",
        kind="class set",
    )
    model: str = param(
        "an open_clip model name, or NAME/TAG with its pretrained tag; hf-hub:TEAM/NAME; or a folder of open_clip, "
        "here or gs://",
        metavar="NAME|URI",
        kind="model",
    )
    pretrained: str = param(
        "an open_clip pretrained tag or a checkpoint file; not for a model folder", "", metavar="TAG|PATH"
    )
    output: str = param("the classifier file to write (.safetensors)", metavar="FILE", kind="output file")
    model_store: str = param(
        "folder for the model's files, which later stages read; models/ beside the output if empty",
        "",
        metavar="DIR",
        kind="output",
    )
    device: str = defaults.device()

    def check_values(self) -> None:
        require(self.output.endswith(".safetensors"), f"--output must end in .safetensors (got '{self.output}')")


LARGEST_FACTOR = 1e4  # CLIP's own is at most 100


@dataclass(kw_only=True)
class CostConfig(StageConfig):
    """What the cost of a training depends on: the parameters that `must train` and `must plan` share."""

    by_preset: ClassVar[dict[str, str]] = {
        "batch_size": "", "epochs": "", "lr": "", "min_lr": "", "ema_decay_init": "", "ema_decay": "",
        "ema_warmup_steps": "", "mask_patch_size": "", "mask_token": "", "weak_padding": "", "randaugment_ops": "",
        "class_prior": "", "confidence_threshold": "", "mask_ratio": "0.1", "pseudo_labels": "propagated",
        "confident_share": "0.4",
        "fairness_weight": "2.0", "align_weight": "0.2", "logit_factor": "model", "flip": "0.0",
        "strong_scale": "0.7,1.0", "randaugment": "rand-m5-mstd0.5-inc1", "alpha": str(defaults.ALPHA),
    }  # fmt: skip

    shards: str = defaults.shards(group="input and output")
    index_sha256: str = defaults.index_sha256()
    classifier: str = param(
        "classifier file made by `must classifier`; it names the model", metavar="FILE", often=True, kind="classifier"
    )
    split: str = param("split to train on; its labels, if there are any, are not read", "train", metavar="NAME")
    preset: str = param(
        "a set of settings. auto, the default: from the number of images and the model; the published ones of a data "
        "set: imagenet, sun397, food101, gtsrb, dtd, ucf101, pets, caltech101; digits: for the bundled example. "
        "It sets the values marked auto or by preset; flags override it; `must plan` prints all values of auto",
        "",
        metavar="NAME",
        often=True,
        kind="preset",
    )
    epochs: int = param("passes over the split", 30, group="optimisation", often=True, at_least=1)
    batch_size: int = param("global batch: images a step, over all processes", 1024, often=True, at_least=1)
    accumulate: int = param(
        "gradient accumulation: micro-batches per process and step; less memory, the same gradients, a quarter "
        "more work",
        1,
        at_least=1,
    )
    shuffle_window: int = param("shards whose images are shuffled together", 16, group="reading shards", at_least=1)
    workers: int | Literal["auto"] = param(
        "loader processes for each training process; auto: on a CPU 2, or as many as a large model needs; with GPUs "
        "(cores / GPUs) - 1, at most 16",
        "auto",
        metavar="N|auto",
        often=True,
        at_least=0,
    )
    device: str = defaults.device(group="how it runs", often=True)
    precision: Literal["auto", "fp32", "bf16"] = param(
        "mixed precision; auto: bf16 autocast on a GPU that has it, and for large models (ViT-B/32 and more) on a CPU "
        "with bf16 instructions (avx512_bf16, AMX); else fp32. Weights, losses and EMA stay fp32; a resumed run keeps "
        "its own",
        "auto",
    )
    activation_checkpointing: bool = param(
        "gradient checkpointing: less memory, a quarter more work, the same gradients", False
    )
    timeout: int = defaults.timeout()


@dataclass(kw_only=True)
class TrainConfig(CostConfig):
    """The defaults are those of the published method (arXiv 2206.02967); presets set what depends on the task.

    Training begins with the preset's settings (`must.training.recipe.resolve`), which passed parameters override.
    Without a preset, `must train` and `must.train(...)` use the preset auto, but TrainConfig(...) keeps the defaults.
    """

    example = (
        "must train --shards shards/ --classifier classifier.safetensors --output model/\n"
        "  torchrun --nproc-per-node=8 -m must train --shards ... (on several GPUs)"
    )

    output: str = param(
        "folder for the adapted model (the bundle), the logs and the curves",
        metavar="DIR",
        group="input and output",
        often=True,
        kind="bundle output",
    )
    lr: float = param(
        "learning rate for 256 images a step; it is scaled by batch size / 256",
        2e-5,
        group="optimisation",
        often=True,
        at_least=0,
    )
    min_lr: float = param(
        "learning rate at the end of the cosine schedule, for 256 images a step like --lr", 1e-6, at_least=0
    )
    weight_decay: float = param("AdamW weight decay of everything but one-dimensional tensors", 0.05, at_least=0)
    layer_decay: float = param(
        "factor of the learning rate from each layer to the next one towards the input", 0.65, above=0, at_most=1
    )
    seed: int = param("random seed of sample order, augmentation, masks and new weights", 0, at_least=0)
    pseudo_labels: Literal["teacher", "propagated"] = param(
        "teacher: from the EMA teacher's probabilities, as published; propagated: from the mean of the "
        "zero-shot model's and the teacher's probabilities, corrected by similar images (label propagation)",
        "teacher",
        group="the method",
    )
    confidence_threshold: float = param(
        "probability from which a pseudo-label is used in the loss; if given, --confident-share is 0",
        0.7,
        at_least=0,
        below=1,
    )
    confident_share: float = param(
        "share of the images above the threshold before training, which sets it (to 0.98 at most); 0: "
        "--confidence-threshold sets it",
        0.0,
        metavar="SHARE",
        between=(0, 1),
    )
    fairness_weight: float = param(
        "weight of the class balance (fairness) term, which counters imbalance in the predictions", 1.0, at_least=0
    )
    class_prior: Literal["uniform", "given"] = param(
        "target of the class balance term. uniform, as published: equally frequent classes; given: the class shares "
        "in the class file, which --preset auto uses if there are some",
        "uniform",
    )
    reconstruction_weight: float = param("weight of the masked image modelling term", 1.0, at_least=0)
    align_weight: float = param("weight of the global-local alignment term", 0.2, at_least=0)
    mask_patch_size: int = param(
        "side of a masked cell in pixels; a multiple of the model's patch", 32, metavar="PX", at_least=1
    )
    mask_ratio: float = param("share of cells that are masked (rounded up)", 0.3, above=0, below=1)
    mask_token: Literal["random", "mean"] = param(
        "initial value of the mask token. random: as published; mean: the mean patch of the images", "random"
    )
    ema_decay_init: float = param("EMA teacher: decay at the first step", 0.999, between=(0, 1))
    ema_decay: float = param("EMA teacher: decay after the ramp", 0.9998, between=(0, 1))
    ema_warmup_steps: int = param("steps of the linear ramp between the two", 2000, at_least=0)
    logit_factor: str = param(
        "factor on the cosine logits: 100 as published; model: the model's own logit scale", "100", metavar="X|model"
    )
    loss_reduction: Literal["global", "rank"] = param(
        "mean of the self-training loss over all processes' confident images, or per process (published)", "global"
    )
    weak_padding: int = param(
        "pixels of padding before the weak view's random crop, which shifts images no larger than the model's input",
        0,
        metavar="PX",
        group="views",
        at_least=0,
    )
    strong_scale: list[float] = param(
        "smallest and largest area of the strong view's random crop, as shares of the image",
        factory=lambda: [0.3, 1.0],
        metavar="LOW,HIGH",
    )
    flip: float = param(
        "probability of mirroring the strong view (0 for digits, text, traffic signs)", 0.5, between=(0, 1)
    )
    randaugment: str = param(
        "RandAugment of the strong view in timm's notation; empty for none", "rand-m9-mstd0.5-inc1"
    )
    randaugment_ops: list[str] = param(
        "operations to draw from, by timm's names (Rotate, ShearX, ...); all if empty", factory=list, metavar="NAME,..."
    )
    checkpoints: str = param(
        "folder for checkpoints; OUTPUT/checkpoints if empty", "", metavar="URI", group="checkpoints", kind="output"
    )
    checkpoint_every: int = param("steps between checkpoints; 0: once an epoch", 0, at_least=0)
    checkpoint_seconds: int = param(
        "also save after this many seconds without a checkpoint; 0: off", 0, metavar="S", at_least=0
    )
    keep_checkpoints: int = param("newest checkpoints to keep", 2, at_least=1)
    resume: bool = param("resume from the newest checkpoint if there is one; --no-resume starts over", True)
    alpha: float = param(
        "weight interpolation: the model is zero-shot + X (trained - zero-shot). The trained one, 1, is also saved, in "
        "OUTPUT/adapted, from which `must refine --alpha` makes another",
        1.0,
        metavar="X",
        group="the model",
        between=(0, 1),
    )
    features: str = defaults.features()
    log_every: int = param("steps between log lines", 10, group="how it runs", at_least=1)

    def check_values(self) -> None:
        require(
            len(self.strong_scale) == 2 and 0 < self.strong_scale[0] <= self.strong_scale[1] <= 1,
            "--strong-scale needs two areas, such as 0.3,1",
        )
        if self.logit_factor != "model":
            require(
                0 < convert(self.logit_factor, float, "--logit-factor") <= LARGEST_FACTOR,
                f"--logit-factor must be above 0 and at most {LARGEST_FACTOR:g}, or 'model'",
            )


@dataclass(kw_only=True)
class PlanConfig(CostConfig):
    example = "must plan --shards shards/ --classifier classifier.safetensors"

    json: str = param("JSON file for the same numbers", "", metavar="FILE", group="the plan", kind="output file")

    def of_training(self) -> TrainConfig:
        """The parameters of the training, without an output."""
        given = [field.name for field in list_parameters(CostConfig) if self.is_passed(field.name)]
        return load(TrainConfig, {"output": ""} | {name: getattr(self, name) for name in given})


def check_batch(samples: int, batch_size: int, world: int, micro_batches: int) -> None:
    """Refuses a batch that a split of so many images, or so many processes, cannot have."""
    local = batch_size // world
    if batch_size % world:
        raise UserError(f"--batch-size {batch_size}: must be a multiple of the number of processes ({world})")
    if samples < batch_size:
        raise UserError(
            f"--batch-size {batch_size}: the split holds {samples} images only; use a batch of at most that many"
        )
    if local % micro_batches:
        raise UserError(f"--accumulate {micro_batches}: must divide the {local} images that each process takes a step")
