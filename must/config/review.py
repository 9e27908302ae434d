"""Parameters of `must review`."""

import os
from dataclasses import dataclass

from must.base.parameters import StageConfig, param, require
from must.config import defaults


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
    output: str = param(
        "folder on this machine for review.json and answers.jsonl",
        metavar="DIR",
        often=True,
        kind="output",
        work="to review",
    )
    page: str = param(
        "write one HTML file with the pictures, for somebody without this program; do not serve", "", metavar="FILE"
    )
    pictures: int = param("pictures in --page at most", 200, at_least=1)
    add: str = param(
        "answers made elsewhere: answers.jsonl as --page saves it, or a .csv file with the columns image and class; "
        "adds them, and ends",
        "",
        metavar="FILE",
    )
    browser: bool = param("open the page in a browser, from a terminal with a display", True)
    who: str = param("name that answers are signed with, unless the page is given another", "", metavar="NAME")
    images: int = param("images to look at, evenly spread; fewer for over 1,000 classes", 20_000, between=(100, 20_000))
    host: str = param("address to listen at", "127.0.0.1", metavar="HOST", group="addresses")
    port: int = param("port; 0: any that is free", 0, between=(0, 65535))
    seed: int = param("of the order of the pictures", 0, group="how it runs")
    batch_size: int = defaults.batch_size()
    workers: int = defaults.workers()
    cache: str = defaults.cache()
    cache_gb: float = defaults.cache_gb()
    device: str = defaults.device()

    def check_values(self) -> None:
        require("://" not in self.output, f"--output {self.output}: must be a folder on this machine")
        require(len(self.who) <= 100, "--who must have at most 100 characters")
        require(not (self.page and self.add), "--page and --add cannot both be given")

    @property
    def signature(self) -> str:
        return self.who or os.environ.get("USER", "")
