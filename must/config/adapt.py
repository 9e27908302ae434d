"""Parameters of `must adapt` and `must demo`."""

from dataclasses import dataclass

from must.base.parameters import StageConfig, param, require


@dataclass(kw_only=True)
class AdaptConfig(StageConfig):
    example = "must adapt photos/ --classes cat,dog,horse --output work/ --epochs 10"

    images: str = param(
        "a folder, tar, zip or table of images, as `must shard --source`; also without the flag: must adapt photos/",
        metavar="URI",
        bare=True,
    )
    classes: str | list[str] = param(
        "the class names: cat,dog,horse; a .txt with one a line; a .yaml (see docs/data.md)", metavar="NAMES|FILE"
    )
    output: str = param("folder for all that is made: shards, classifier, model, labels, report", metavar="DIR")
    model: str = param("an open_clip name, hf-hub:TEAM/NAME, or a model's folder", "ViT-B-16", metavar="NAME|URI")
    pretrained: str = param(
        "its weights: an open_clip tag or a file [for ViT-B-16: datacomp_xl_s13b_b90k]", "", metavar="TAG|PATH"
    )
    test_images: str = param(
        "labelled images to measure the accuracy with: a folder per class, or a file of labels", "", metavar="DIR|FILE"
    )
    settings: dict[str, str] = param(
        "any settings of `must train`: preset=digits,epochs=9; its flags work, too: --epochs 9",
        factory=dict,
        metavar="NAME=VALUE,...",
    )
    again: bool = param(
        "allow an output that was made from other images, classes, models or settings, which is an error without "
        "this flag: reuse what still fits, move the rest to OUTPUT/before-1",
        False,
    )
    max_rejected: float = param(
        "largest share of undecodable images; above it nothing is trained", 0.01, metavar="SHARE", between=(0, 1)
    )
    device: str = param("auto (cuda, else mps, else cpu), cpu, cuda, cuda:N or mps", "auto")

    def check_values(self) -> None:
        require(bool(self.images), "--images is missing; give a folder, tar, zip or table of images")


@dataclass(kw_only=True)
class DemoConfig(StageConfig):
    example = "must demo --output demo/"

    output: str = param("folder to write to", metavar="DIR")
