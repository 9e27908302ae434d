"""Parameters of the stages that judge and improve a model: `must evaluate`, `gate`, `refine` and `review`."""

import os
from dataclasses import dataclass
from typing import Literal

from must.base.parameters import StageConfig, param, require
from must.config import defaults


@dataclass(kw_only=True)
class EvaluateConfig(StageConfig):
    example = (
        "must evaluate work/\n"
        "  must evaluate --model model/ --baseline classifier.safetensors --shards shards/ --output report/"
    )

    model: str = defaults.bundle("the bundle written by `must train`")
    baseline: str = param(
        "what it is compared with: a classifier file (its zero-shot model), or another bundle",
        "",
        metavar="FILE|BUNDLE",
        often=True,
        kind="baseline",
        part="classifier",
    )
    shards: str = defaults.shards("test shards")
    index_sha256: str = defaults.index_sha256()
    split: str = param("split to evaluate on", "test", metavar="NAME", often=True, part="test shards")
    output: str = defaults.output("folder of metrics.json, predictions.csv, report.html", part="report")
    labels: Literal["auto", "ignore"] = param(
        "auto: use the labels there are; ignore: evaluate as if there were none", "auto"
    )
    features: str = defaults.features()
    refined: str = param(
        "folder of `must refine`, whose labels the report shows",
        "",
        metavar="URI",
        kind="refined",
        part="labels",
    )
    risk: float = defaults.risk("largest share of wrong classes among classified images, for the abstention threshold")
    batch_size: int = defaults.batch_size(group="how it runs")
    workers: int = defaults.workers()
    device: str = defaults.device(group="how it runs", often=True)
    timeout: int = defaults.timeout()


@dataclass(kw_only=True)
class GateConfig(StageConfig):
    example = "must gate work/\n  must gate --metrics report/metrics.json --gate labelled --output decision.json"

    metrics: str = param("metrics.json of `must evaluate`, with a baseline", metavar="FILE", part=defaults.METRICS)
    model: str = param(defaults.WORK.removeprefix("or "), "", metavar="WORK", bare=True, part="bundle")
    output: str = param(
        "JSON file for the decision and its reasons", "", metavar="FILE", kind="output file", part="decision"
    )
    gate: Literal["auto", "labelled", "label-free", "none"] = param(
        "auto: labelled if there are --min-images labelled images, else the answers of `must review` drawn at random "
        "if they decide or are 50 or more, and measure at least half of the images, else label-free; labelled: the "
        "paired interval of the gain over the baseline on a labelled split; label-free: a model that collapsed is "
        "stopped; none: every model passes",
        "auto",
    )
    metric: Literal["top1", "top5", "mean_per_class"] = param("labelled: what must have gained", "top1")
    min_gain: float = param(
        "labelled: the 95% interval's lower end must be above this; 0.01 is a point", 0.0, between=(-1, 1)
    )
    min_images: int = param("labelled: images below which no decision is made", 100, at_least=1)


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
        part="bundle",
    )
    answers: str = param(
        "folder of `must review`: answered images keep their answer, similar ones are corrected, and so are new ones",
        "",
        metavar="URI",
        often=True,
        kind="answers",
        part="answers",
    )
    split: str = param("split of unlabeled images", "train", metavar="NAME")
    features: str = defaults.features()
    output: str = defaults.output("folder for predictions.csv, copies.csv and refined.json", part="labels")
    alpha: float | Literal["auto"] = param(
        "weight interpolation between the zero-shot (0) and the trained model (1); auto: that of the model there",
        "auto",
        metavar="X|auto",
        between=(0, 1),
    )
    risk: float = defaults.risk("largest share of wrong labels that is promised (`accepted` in predictions.csv)")
    promise: Literal["set", "accepted"] = param(
        "what the promise of `accepted` is about: set: all labels, once a person has named the pictures that are left; "
        "accepted: those labels alone, which takes more answers",
        "set",
    )
    limit: int = param(
        "largest number of images, taken at even intervals; time grows with its square", 1_000_000, at_least=1
    )
    memory_images: int = param("largest number of images that the memory holds", 10_000, at_least=11)
    batch_size: int = defaults.batch_size(group="how it runs")
    workers: int = defaults.workers()
    device: str = defaults.device(group="how it runs", often=True)


@dataclass(kw_only=True)
class ReviewConfig(StageConfig):
    example = (
        "must review work/\n"
        "  must review --model model/ --baseline classifier.safetensors --shards shards/ --output review/"
    )

    model: str = defaults.bundle("the adapted bundle")
    baseline: str = defaults.classifier("the classifier file that it was trained with")
    shards: str = defaults.shards()
    split: str = param("split whose pictures are shown", "train", metavar="NAME", often=True)
    features: str = defaults.features()
    output: str = defaults.output(
        "folder on this machine for review.json and answers.jsonl", metavar="DIR", part="answers"
    )
    add: str = param(
        "answers made elsewhere: a .csv file with the columns image and class; adds them, and ends", "", metavar="FILE"
    )
    browser: bool = param("open the page in a browser, from a terminal with a display", True)
    who: str = param("name that answers are signed with, unless the page is given another", "", metavar="NAME")
    limit: int = param("images to look at, evenly spread; fewer for over 1,000 classes", 20_000, between=(100, 20_000))
    host: str = param("address to listen at", "127.0.0.1", metavar="HOST", group="addresses")
    port: int = param("port; 0: any that is free", 0, between=(0, 65535))
    seed: int = param("of the order of the pictures", 0, group="how it runs")
    batch_size: int = defaults.batch_size()
    workers: int = defaults.workers()
    device: str = defaults.device()

    def check_values(self) -> None:
        require("://" not in self.output, f"--output {self.output}: must be a folder on this machine")
        require(len(self.who) <= 100, "--who must have at most 100 characters")

    @property
    def signature(self) -> str:
        return self.who or os.environ.get("USER", "")
