"""Parameters of the stages that use a model: `must predict`, `serve`, `export` and `promote`."""

import re
from dataclasses import dataclass
from typing import Literal

from must.base.parameters import StageConfig, flag, param, require
from must.config import defaults

SERVED_NAME = re.compile(r"[a-zA-Z0-9][-a-zA-Z0-9._]{0,62}")


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
        "images, folders (also of buckets), globs, archives, shards, Parquet tables or lists (.csv, .jsonl) of images; "
        "-: a picture on standard input, or names on it",
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
    output: str = param(".csv, .jsonl or .parquet file in place of the table", "", metavar="FILE|URI", often=True)
    abstain: float = defaults.abstain(often=True)
    part: str = param(
        "write part I of N, a file in OUTPUT.parts, with its share of the images by a hash of their names; those there "
        "are not labelled again; the same command without --part joins the parts",
        "",
        metavar="I/N",
        group="many images",
    )
    known: str = param(
        "label only images that the table here has no row of, or another content; --output itself: keep the rows of "
        "images that are still named, also those of other models",
        "",
        metavar="FILE|DIR",
    )
    relabel: bool = param("with --part: label images again whose rows are of another model", False)
    embeddings: bool = param(
        "add the images' embeddings, of a bundle or a file of `must export --embeddings`, to a .parquet file", False
    )
    batch_size: int = defaults.batch_size(32, group="how it runs")
    workers: int = param(
        "processes that read and decode many images; 0: one a core, two for a bucket; on Linux", 0, at_least=0
    )
    threads: int = defaults.threads()
    device: str = defaults.device("of a bundle: ")

    def check_values(self) -> None:
        defaults.check_abstain(self.abstain)
        require(bool(self.images), "no image given; name images or folders")
        defaults.parse_part(self.part or "1/1")
        require(
            not self.output or self.output.lower().endswith((".csv", ".jsonl", ".parquet")),
            f"--output {self.output}: the name must end in .csv, .jsonl or .parquet",
        )
        require(bool(self.output) or not (self.part or self.known), "--part and --known need --output")
        require(
            bool(self.part) or not self.relabel, "--relabel needs --part; without --known one file is labelled again"
        )
        require(
            not self.embeddings or self.output.lower().endswith(".parquet"), "--embeddings needs --output FILE.parquet"
        )


@dataclass(kw_only=True)
class ServeConfig(StageConfig):
    example = (
        "must serve work/\n"
        "  must serve --model onnx/\n"
        "  must serve --registry gs://models/registry --name photos\n"
        "  curl --data-binary @photo.jpg http://localhost:8080/classify"
    )

    model: str = param(
        f"model.onnx, or the folder it is in: a path or a bucket's URI; {defaults.WORK}",
        "",
        metavar="FILE|URI|WORK",
        bare=True,
        group="model",
        often=True,
        part="onnx",
    )
    registry: str = param(
        "in place of --model: serve this registry's champion, and the next when promoted", "", metavar="URI", often=True
    )
    name: str = param("the model's name in the registry and in addresses", "must", metavar="NAME", often=True)
    poll: float = param(
        "seconds between looks at the registry's LATEST; its model is swapped in (hot swap)", 10.0, metavar="S", above=0
    )
    top_k: int = param(
        "classes in an answer, unless the request says how many", 5, metavar="K", group="answers", at_least=1
    )
    abstain: float = defaults.abstain()
    host: str = param("address to listen at; 0.0.0.0 for all", "127.0.0.1", metavar="HOST", group="addresses")
    port: int = param("port for HTTP; 0: any that is free", 8080, often=True, between=(0, 65535))
    batch_size: int = param("images a forward pass at most", 32, group="how it runs", at_least=1)
    threads: int = defaults.threads()
    max_body: float = param("megabytes of a request", 16.0, metavar="MB", group="limits", above=0)
    max_images: int = param("images of a request", 64, between=(1, 512))
    max_pixels: float = param("megapixels of an image", 40.0, metavar="MP", between=(0.001, 178.0))
    drain: float = param(
        "seconds from SIGTERM, when readiness ends, until no connections are taken", 5.0, metavar="S", at_least=0
    )

    def check_values(self) -> None:
        require(bool(self.model) or bool(self.registry), "--model is missing; or give --registry with --name")
        require(not (self.model and self.registry), "--model and --registry cannot both be given")
        require(
            SERVED_NAME.fullmatch(self.name) is not None,
            f"--name {self.name[:80]}: use letters, digits, '-', '.' and '_', at most 63 characters",
        )
        defaults.check_abstain(self.abstain)


@dataclass(kw_only=True)
class ExportConfig(StageConfig):
    example = (
        "must export work/\n"
        "  must export --model model/ --output onnx/\n"
        "  must export --model model/ --output ours/ --to open_clip --classifier classifier.safetensors"
    )

    model: str = defaults.bundle("the bundle written by `must train`")
    output: str = defaults.output("folder for the exported model and its card", part="{to}")
    to: Literal["onnx", "open_clip"] = param(
        "what reads it: any ONNX runtime, or open_clip's own code, without this library", "onnx", often=True
    )
    classifier: str = defaults.classifier("for open_clip: the classifier file of the training", "")
    license: str = param(
        "licence for the model card, by the hub's short name (mit, apache-2.0)", "", metavar="ID", group="model card"
    )
    precision: Literal["fp32", "int8"] = param("of weights and arithmetic; outputs are float32", "fp32", group="ONNX")
    input: Literal["normalized", "uint8"] = param(
        "what the graph takes: float32 [N,3,S,S], normalised; or uint8 [N,S,S,3], which it normalises", "normalized"
    )
    embeddings: bool = param(
        "the graph also returns each image's embedding: `embedding`, float32 [N,D] of length 1, from which the classes "
        "are computed; for your own searches of similar images",
        False,
    )
    shards: str = param(
        "shards whose images the export is checked with, and int8 is calibrated on; random pixels without",
        "",
        metavar="URI",
        group="images to check with",
        often=True,
        kind="shards",
        part="shards",
    )
    index_sha256: str = defaults.index_sha256("--shards")
    split: str = param("split of --shards to take images from", "train", metavar="NAME")
    limit: int = param("images of --shards to check and calibrate with", 256, at_least=1)
    min_agreement: float = param(
        "smallest share of images that must get PyTorch's class; 0 means 1 for fp32, 0.97 for int8", 0.0, between=(0, 1)
    )
    metrics: str = param(
        "metrics.json of `must evaluate`, for the model card",
        "",
        metavar="FILE",
        group="model card",
        often=True,
        kind="metrics",
        part=defaults.METRICS,
    )

    def check_values(self) -> None:
        for name in ("precision", "input", "embeddings", "min_agreement"):
            changed = getattr(self, name) != type(self).__dataclass_fields__[name].default
            require(self.to == "onnx" or not changed, f"{flag(name)} goes with --to onnx, not with --to {self.to}")
        require(
            self.to == "onnx" or bool(self.classifier),
            f"--to {self.to}: --classifier is missing: the classifier file that the model was trained from, whose text "
            "tower goes along",
        )
        require(
            re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,63}|", self.license) is not None,
            f"--license {self.license[:40]}: expected a short name of the hub's, such as mit or apache-2.0",
        )


@dataclass(kw_only=True)
class PromoteConfig(StageConfig):
    example = (
        "must promote work/ --registry gs://models/registry --name digits\n"
        "  must promote --model model/ --onnx onnx/ --registry gs://models/registry --name digits\n"
        "  must promote --rollback --registry gs://models/registry --name digits"
    )

    registry: str = param("where promoted models live: a folder or a bucket's URI", metavar="URI", often=True)
    name: str = param("the model's name in the registry", metavar="NAME", often=True)
    model: str = defaults.bundle("the bundle written by `must train`", "", group="what is promoted", kind="")
    onnx: str = param("the folder written by `must export`, to go with it", "", metavar="DIR", often=True, part="onnx")
    metrics: str = param("metrics.json of `must evaluate`, to be remembered", "", metavar="FILE", part=defaults.METRICS)
    decision: str = param("decision of `must gate`; a stopped model is refused", "", metavar="FILE", part="decision")
    champion: str = param(
        "version this model was compared with, or none; refused if LATEST is another one by now", "", metavar="VERSION"
    )
    version: str = param(
        "the version's name; if empty, from the data's revision and the weights",
        "",
        metavar="VERSION",
    )
    rollback: bool = param(
        "go back to the champion before; given again, it changes nothing", False, group="what there is"
    )
    to: str = param("with --rollback: to this earlier champion, also further back", "", metavar="VERSION")
    list: bool = param("show the versions there are", False)

    def check_values(self) -> None:
        require(not (self.rollback and self.list), "--rollback and --list: give one of them")
        require(not self.to or self.rollback, "--to goes with --rollback")
        require(
            self.rollback or self.list or bool(self.model),
            "--model is missing: the bundle to promote (or give --rollback, or --list)",
        )
        for name in ("version", "to"):
            value = getattr(self, name)
            require(
                re.fullmatch(r"[a-z0-9][-a-z0-9._]{0,62}|", value) is not None,
                f"{flag(name)} {value}: use small letters, digits, '-', '.' and '_', at most 63 characters",
            )
