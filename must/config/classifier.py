"""Parameters of `must classifier`."""

from dataclasses import dataclass

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
