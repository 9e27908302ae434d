"""Parameters of `must predict`."""

from dataclasses import dataclass, fields

from must.base.parameters import StageConfig, param, require
from must.config import defaults
from must.config.defaults import parse_part

OF_SHARDS = ("split", "index_sha256", "part", "workers")  # only valid with --shards


@dataclass(kw_only=True)
class PredictConfig(StageConfig):
    example = (
        "must predict --model work/ photo.jpg more-photos/\n"
        "  must predict --model ViT-B-16/datacomp_xl_s13b_b90k --classes cat,dog,horse photo.jpg"
    )

    model: str = param(
        "model.onnx, or the folder it is in; or what torch runs: a bundle's folder, a classifier file, or, with "
        "--classes, any CLIP model by its name, such as ViT-B-16/datacomp_xl_s13b_b90k",
        metavar="FILE|DIR|NAME",
        often=True,
    )
    images: list[str] = param(
        "images, folders or globs; -: a picture on standard input, or names on it",
        factory=list,
        metavar="IMAGE|DIR",
        positional=True,
        often=True,
    )
    classes: str | list[str] = param(
        "for a CLIP model that was not adapted: its classes, as `must classifier --classes`",
        "",
        metavar="NAMES|FILE|SET",
        often=True,
    )
    top_k: int = param("classes to print for an image", 1, metavar="K", often=True, at_least=1)
    output: str = param(
        "CSV or JSONL file in place of the table; of --shards a folder of Parquet", "", metavar="FILE|URI", often=True
    )
    abstain: float = param(
        "no class where the top probability is below this; -1: the model's threshold, 0: always one",
        -1.0,
        metavar="T",
        often=True,
    )
    shards: str = param(
        "classify a folder of shards instead: a path or URI", "", metavar="URI", group="a whole bucket", often=True
    )
    split: str = param("split of --shards; all of them if empty", "", metavar="NAME")
    index_sha256: str = defaults.index_sha256()
    part: str = param(
        "classify the shards I, I+N, I+2N, ... only, I from 1 to N: one of N programs that share the work",
        "1/1",
        metavar="I/N",
    )
    workers: int = param("processes that read and decode images of --shards; 0 means one a core", 0, at_least=0)
    batch_size: int = defaults.batch_size(32, group="how it runs")
    threads: int = defaults.threads()
    device: str = defaults.device("of a bundle: ")

    def check_values(self) -> None:
        require(
            0 <= self.abstain <= 1 or self.abstain == -1,
            "--abstain must be from 0 to 1: it is a probability; or -1, for the threshold in the model",
        )
        if self.shards:
            self.check_shards()
            return
        for field in fields(self):
            allowed = field.name not in OF_SHARDS or getattr(self, field.name) == field.default
            require(allowed, f"--{field.name.replace('_', '-')} is for --shards")
        require(bool(self.images), "no image given; name images, or a folder of shards with --shards")
        require(
            not self.output or self.output.lower().endswith((".csv", ".jsonl")),
            f"--output {self.output}: the name must end in .csv or .jsonl",
        )

    def check_shards(self) -> None:
        require(not self.images, "--shards takes the place of single images; give one or the other")
        require(bool(self.output), "--shards needs --output: the folder for the Parquet files, or a bucket's URI")
        require(
            not self.output.lower().endswith((".csv", ".jsonl", ".parquet")),
            f"--output {self.output}: with --shards it is a folder, one Parquet file a shard is written there",
        )
        parse_part(self.part)
