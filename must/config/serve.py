"""Parameters of `must serve`."""

import re
from dataclasses import dataclass

from must.base.parameters import StageConfig, param, require
from must.config import defaults

SERVED_NAME = re.compile(r"[a-zA-Z0-9][-a-zA-Z0-9._]{0,62}")


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
        work="onnx",
        group="model",
        often=True,
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
    abstain: float = param(
        "no class where the top probability is below this; -1: the model's threshold, 0: always one", -1.0, metavar="T"
    )
    host: str = param("address to listen at; 0.0.0.0 for all", "127.0.0.1", metavar="HOST", group="addresses")
    port: int = param("port for HTTP; 0: any that is free", 8080, often=True, between=(0, 65535))
    batch_size: int = param("images a forward pass at most", 32, group="how it runs", at_least=1)
    threads: int = defaults.threads()
    decoders: int = param("threads that decode images; 0 means one a core", 0, at_least=0)
    max_body: float = param("megabytes of a request", 16.0, metavar="MB", group="limits", above=0)
    max_memory: float = param("megabytes that all requests' bodies may take at a time", 256.0, metavar="MB", above=0)
    max_images: int = param("images of a request", 64, at_least=1)
    max_pixels: float = param("megapixels of an image", 40.0, metavar="MP", above=0)
    request_pixels: float = param(
        "megapixels of all a request's images together; costly forms of pictures count more", 64.0, metavar="MP"
    )
    queue_pixels: float = param("megapixels that may wait; more are refused with 503", 256.0, metavar="MP")
    decode_memory: float = param(
        "megabytes that images being decoded may take at a time; one alone always may", 1000.0, metavar="MB", above=0
    )
    queue: int = param("images that may wait; more are refused with 503", 512, at_least=1)
    patience: float = param(
        "seconds that a client may take to send a request, and an answer may take", 30.0, metavar="S", above=0
    )
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
        require(0 <= self.abstain <= 1 or self.abstain == -1, "--abstain must be from 0 to 1, or -1")
        require(
            self.max_pixels <= self.request_pixels <= self.queue_pixels,
            "--max-pixels must not be above --request-pixels, nor that above --queue-pixels",
        )
        require(self.max_body <= self.max_memory, "--max-body must not be above --max-memory")
        require(self.max_images <= self.queue, "--max-images must not be above --queue")
