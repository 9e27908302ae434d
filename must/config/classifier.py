"""Parameters of `must classifier`."""

from __future__ import annotations

from dataclasses import dataclass

from must.parameters import StageConfig, param


@dataclass(kw_only=True)
class ClassifierConfig(StageConfig):
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
