"""Parameters of `must select` and `must refine`."""

from dataclasses import dataclass
from typing import Literal

from must.base.parameters import StageConfig, param
from must.config import defaults


@dataclass(kw_only=True)
class SelectConfig(StageConfig):
    example = (
        "must select work/\n"
        "  must select --model model/ --baseline classifier.safetensors --shards shards/ --alpha 1 --output all/"
    )

    model: str = defaults.bundle("a bundle of `must train`; the model with alpha 1 in its folder adapted/ is used")
    baseline: str = defaults.classifier("the classifier file that it was trained with: its zero-shot model")
    shards: str = defaults.shards()
    split: str = param("split of unlabeled images for the check, 2,000 of them at most", "train", metavar="NAME")
    output: str = param("folder for the new bundle", metavar="URI", often=True, kind="output", work="to selected")
    alpha: float | Literal["auto"] = param(
        f"{defaults.ALPHA}, or the most accurate one by --answers or --labelled",
        "auto",
        metavar="X|auto",
        often=True,
        between=(0, 1),
    )
    answers: str = defaults.answers("folder of `must review`, whose answers choose alpha")
    labelled: str = param("split with labels, such as test, which choose alpha", "", metavar="NAME")
    batch_size: int = defaults.batch_size(group="how it runs")
    workers: int = defaults.workers()
    cache: str = defaults.cache(group="reading shards")
    cache_gb: float = defaults.cache_gb()
    device: str = defaults.device(group="how it runs", often=True)


@dataclass(kw_only=True)
class RefineConfig(StageConfig):
    example = (
        "must refine work/\n"
        "  must refine --shards shards/ --classifier classifier.safetensors --model model/ --output labels/"
    )

    shards: str = defaults.shards(group="input and output")
    index_sha256: str = defaults.index_sha256()
    classifier: str = defaults.classifier("classifier file made by `must classifier`; it names the model")
    model: str = defaults.bundle(
        "bundle of `must train`: the mean of its predictions and zero-shot's is propagated; none: zero-shot's alone", ""
    )
    answers: str = defaults.answers(
        "folder of `must review`: answered images keep their answer, and similar ones are corrected"
    )
    split: str = param("split of unlabeled images", "train", metavar="NAME")
    output: str = param(
        "folder for predictions.csv and refined.json", metavar="URI", often=True, kind="output", work="to labels"
    )
    images: int = param(
        "largest number of images, taken at even intervals; time grows with its square",
        1_000_000,
        at_least=1,
    )
    batch_size: int = defaults.batch_size(group="how it runs")
    workers: int = defaults.workers()
    cache: str = defaults.cache(group="reading shards")
    cache_gb: float = defaults.cache_gb()
    device: str = defaults.device(group="how it runs", often=True)
