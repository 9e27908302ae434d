"""Parameters of `must adapt`."""

from dataclasses import dataclass

from must.base.parameters import StageConfig, param, require


@dataclass(kw_only=True)
class AdaptConfig(StageConfig):
    synonyms = StageConfig.synonyms | {"class_names": "classes"}
    example = "must adapt photos/ --classes cat,dog,horse --output work/ --epochs 10"

    images: str = param(
        "images, as `must shard --source` takes them: a folder, say; also without the flag: must adapt photos/",
        metavar="URI",
        bare=True,
    )
    classes: str | list[str] = param(
        "the class names: cat,dog,horse, a .txt with one a line, or as `must classifier --classes`",
        metavar="NAMES|FILE",
    )
    output: str = param("folder for all that is made: shards, classifier, model, labels, report", metavar="DIR")
    model: str = param("the model, as `must classifier --model`", "ViT-B-16", metavar="NAME|URI")
    pretrained: str = param(
        "its weights, as `must classifier --pretrained`; datacomp_xl_s13b_b90k for the model that is taken if none is "
        "named",
        "",
        metavar="TAG|PATH",
    )
    test_images: str = param(
        "labelled images to measure the accuracy with: a folder with a folder a class, or a file of labels as `must "
        "sort` takes it",
        "",
        metavar="DIR|FILE",
    )
    settings: dict[str, str] = param(
        "parameters of `must train`, e.g. epochs=10,workers=4; also as its flags: --epochs 10 --workers 4",
        factory=dict,
        metavar="NAME=VALUE,...",
    )
    again: bool = param(
        "if the output was made from other images, classes, models or settings: keep what these do not change, and "
        "move the rest to a folder before-1 in it",
        False,
    )
    max_rejected: float = param(
        "largest share of undecodable images, as `must shard --max-rejected`", 0.01, metavar="SHARE", between=(0, 1)
    )
    device: str = param("auto, cpu, cuda or cuda:N", "auto")

    def check_values(self) -> None:
        require("://" not in self.output, f"--output {self.output}: must be a folder on this machine")
        require(bool(self.images), "--images: which images is missing")
