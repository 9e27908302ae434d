"""Parameters of `must adapt`, `must sort`, `must demo` and `must quickstart`."""

from dataclasses import dataclass
from typing import Any, Literal

from must.base.errors import UserError
from must.base.parameters import StageConfig, convert, list_parameters, param, require
from must.config import defaults


@dataclass(kw_only=True)
class AdaptConfig(StageConfig):
    example = "must adapt photos/ --classes cat,dog,horse --output work/ --epochs 10\n  must adapt work/"

    images: Any = param(
        "a folder, tar, zip or table of images, as `must shard --source`; also without the flag: must adapt photos/; "
        "or OUTPUT of an earlier call, without more words: brings all that is in it up to date; in Python also a list "
        "of paths, images or arrays, or a Dataset",
        metavar="URI",
        often=True,
        bare=True,
    )
    classes: Any = param(
        "the class names: cat,dog,horse; a .txt with one a line; a .yaml (docs/kubeflow.md); folders: the names of the "
        "folders of --test-images, else of the images; or imagenet",
        metavar="NAMES|FILE",
        often=True,
    )
    output: str = param("folder for all that is made: model, labels, report", metavar="DIR", often=True)
    test_images: str = param(
        "labelled images to measure the accuracy with: a folder per class, or a table (.csv) of image and class",
        "",
        metavar="DIR|FILE",
        often=True,
    )
    model: str = param(
        "an open_clip name, hf-hub:TEAM/NAME, or a model's folder", "ViT-B-16", metavar="NAME|URI", often=True
    )
    train: Literal["auto", "yes", "no"] = param(
        "no: one pass over the images gives the model a memory of them; yes: train it besides; auto: train it "
        "where there is a CUDA GPU",
        "auto",
        often=True,
    )
    verbose: bool = param("show what each step says, too; OUTPUT/adapt.log has it in any case", False, often=True)
    pretrained: str = param(
        "the model's weights: an open_clip tag or a file [for ViT-B-16: datacomp_xl_s13b_b90k]",
        "",
        metavar="TAG|PATH",
        group="model and training",
    )
    settings: dict[str, Any] = param(
        "any settings of `must train`: preset=digits,epochs=9; its flags work, too: --epochs 9",
        factory=dict,
        metavar="NAME=VALUE,...",
    )
    max_rejected: float = param(
        "largest share of undecodable images; above it nothing is trained", 0.01, metavar="SHARE", between=(0, 1)
    )
    device: str = defaults.device()
    rename: dict[str, str] = param(
        "classes that have another name now; their answers get it, too, and two may become one: must adapt WORK "
        "--rename cat=tomcat",
        factory=dict,
        metavar="OLD=NEW,...",
        group="an earlier OUTPUT",
    )
    drop: bool = param("let go of answers whose class is gone; else a call that would do so is refused", False)
    again: bool = param("make everything anew, as if all inputs had changed", False)

    def check_values(self) -> None:
        given = not isinstance(self.images, str) or bool(self.images)
        require(given, "--images is missing; give a folder, tar, zip or table of images")
        require(bool(self.output), "--output is empty; give a folder")


def gather_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Values of `must adapt`, with those that are not its own, but of `must train`, in `settings`.

    Raises UserError: one is given twice."""
    own = {field.name for field in list_parameters(AdaptConfig)}
    more = {name: value for name, value in values.items() if name not in own}
    settings = convert(values.get("settings") or {}, dict[str, Any], "--settings")
    for name in more.keys() & settings.keys():
        raise UserError(f"--{name}: is given twice, as a flag and in --settings")
    kept = {name: value for name, value in values.items() if name in own}
    return kept | ({"settings": settings | more} if settings or more else {})


@dataclass(kw_only=True)
class SortConfig(StageConfig):
    example = "must sort work/\n  must sort work/ --copy --output sorted/"

    model: str = defaults.bundle("the bundle whose labels these are")
    labels: str = param("folder of `must refine`", metavar="DIR", kind="refined", part="labels")
    shards: str = defaults.shards()
    output: str = defaults.output("folder to make, with a folder for each class", metavar="DIR", part="sorted")
    copy: bool = param("copy the images in place of linking to them", False)

    @property
    def split(self) -> str:
        return "train"

    def check_values(self) -> None:
        require("://" not in self.output, f"--output {self.output}: must be a folder on this machine")


@dataclass(kw_only=True)
class DemoConfig(StageConfig):
    example = "must demo --output demo/"

    output: str = param("folder to write to", metavar="DIR")


@dataclass(kw_only=True)
class QuickstartConfig(StageConfig):
    example = "must quickstart"

    output: str = param("folder to write to", "quickstart", metavar="DIR")
