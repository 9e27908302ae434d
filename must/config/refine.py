"""Parameters of `must refine`."""

from dataclasses import dataclass
from typing import Literal

from must.base.parameters import StageConfig, param
from must.config import defaults


@dataclass(kw_only=True)
class RefineConfig(StageConfig):
    example = (
        "must refine work/\n"
        "  must refine --shards shards/ --classifier classifier.safetensors --model model/ --output labels/"
    )

    shards: str = defaults.shards(group="input and output")
    index_sha256: str = defaults.index_sha256()
    classifier: str = defaults.classifier("classifier file made by `must classifier`: the zero-shot model")
    model: str = param(
        "the bundle that gets the memory: of `must train`; where there is none yet, the zero-shot model is written "
        f"there with its memory; {defaults.WORK}",
        metavar="BUNDLE|WORK",
        often=True,
        bare=True,
        kind="output",
        work="bundle",
    )
    answers: str = defaults.answers(
        "folder of `must review`: answered images keep their answer, similar ones are corrected, and so are new ones"
    )
    split: str = param("split of unlabeled images", "train", metavar="NAME")
    output: str = param(
        "folder for predictions.csv and refined.json", metavar="URI", often=True, kind="output", work="to labels"
    )
    alpha: float | Literal["auto"] = param(
        "weight interpolation between the zero-shot (0) and the trained model (1); auto: as trained, or the one of "
        f"0, {defaults.ALPHA} and 1 whose refined labels are right most often on the answers drawn at random, if it is "
        "better by more than one standard error",
        "auto",
        metavar="X|auto",
        between=(0, 1),
    )
    risk: float = param(
        "largest share of wrong labels among those that can be taken unseen (`accepted` in predictions.csv); needs 59 "
        "or more answers drawn at random",
        defaults.RISK,
        above=0,
        below=1,
    )
    classes: str = param(
        "only compare: the neighbours' agreement, labels and findings with these class names, beside those of the "
        "classifier's, on at most 2,000 images; nothing is written",
        "",
        metavar="NAMES|FILE",
    )
    images: int = param(
        "largest number of images, taken at even intervals; time grows with its square", 1_000_000, at_least=1
    )
    memory_images: int = param("largest number of images that the memory holds", 10_000, at_least=1)
    batch_size: int = defaults.batch_size(group="how it runs")
    workers: int = defaults.workers()
    cache: str = defaults.cache(group="reading shards")
    cache_gb: float = defaults.cache_gb()
    device: str = defaults.device(group="how it runs", often=True)
