"""Parameters of `must classifier` and `must backbones`."""

from dataclasses import dataclass
from typing import Literal

from must.base.parameters import StageConfig, param, require
from must.config import defaults


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
    )
    pretrained: str = param(
        "an open_clip pretrained tag or a checkpoint file; not for a model folder", "", metavar="TAG|PATH"
    )
    output: str = param("the classifier file to write (.safetensors)", metavar="FILE", kind="output")
    model_store: str = param(
        "folder for the model's files, which later stages read; models/ beside the output if empty",
        "",
        metavar="DIR",
        kind="output",
    )
    device: str = defaults.device()

    def check_values(self) -> None:
        require(self.output.endswith(".safetensors"), f"--output must end in .safetensors (got '{self.output}')")


@dataclass(kw_only=True)
class BackbonesConfig(StageConfig):
    example = "must backbones photos/ --classes classes.yaml --models ViT-B-16/datacomp_xl_s13b_b90k,ViT-B-16/openai"

    images: str = param(
        "images, as `must shard --source`; also without the flag: must backbones DIR/",
        metavar="URI",
        bare=True,
        often=True,
    )
    classes: str | list[str] = param(
        "the class names, as `must classifier --classes`", metavar="NAMES|FILE|SET", kind="class set", often=True
    )
    models: list[str] = param(
        "the models to compare, each as `must classifier --model`: NAME/TAG, NAME/FILE, hf-hub:TEAM/NAME or a folder",
        metavar="MODEL,...",
        often=True,
    )
    labels: Literal["folder", "csv", "none"] = param(
        "where labels are, if there are any, as `must shard --labels`; the true accuracy then stands beside the score, "
        "which no label goes into",
        "none",
        often=True,
    )
    most: int = param("images to look at, evenly spread, at most", 2_000, at_least=1)
    output: str = param("JSON file for the table", "", metavar="FILE", kind="output", often=True)
    batch_size: int = defaults.batch_size(64, group="how it runs")
    workers: int = defaults.workers()
    device: str = defaults.device(often=True)

    def check_values(self) -> None:
        require(len(self.models) >= 2, "--models: give two or more, with commas between them")
        require(len(set(self.models)) == len(self.models), "--models: one of them is given twice")
