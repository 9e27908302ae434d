"""Parameters of `must shard` and `must classifier`, which prepare images and classes for the training."""

from dataclasses import dataclass
from typing import Literal

from must.base.parameters import StageConfig, param, require
from must.config import defaults


@dataclass(kw_only=True)
class ShardConfig(StageConfig):
    example = "must shard photos/ --test-source labelled/ --labels folder --output shards/"

    source: str = param(
        "images: a folder or a bucket's prefix, a .csv/.jsonl manifest with the columns path[,label][,split], a tar or "
        "zip archive, WebDataset shards (a folder of them, or x-{000..099}.tar), .parquet tables, or a data set of "
        "Hugging Face saved to disk",
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
    resize: int = param(
        "re-encode larger images as JPEG with this shorter side; 0 changes none", 0, metavar="PX", between=(0, 65_535)
    )
    quality: int = param("JPEG quality of --resize", 90, metavar="1-95", between=(1, 95))
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
        "an open_clip model name, or NAME/TAG with its pretrained tag; hf-hub:TEAM/NAME; or a folder of open_clip or "
        "transformers (CLIP, SigLIP), here or gs://",
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
