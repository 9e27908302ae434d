"""Parameters that several stages have, with their defaults and help texts."""

from typing import Any

from must.base.parameters import param

CACHE_GB = 30.0
WORK = "or WORK, a folder that `must adapt` made: no other flag is then required"


def bundle(text: str = "the bundle written by `must train`") -> Any:
    """The stage's model, or WORK."""
    return param(
        f"{text}; {WORK}", metavar="BUNDLE|WORK", group="input and output", often=True, bare=True, kind="bundle",
        work="bundle",
    )  # fmt: skip


def baseline(text: str) -> Any:
    return param(text, metavar="FILE", often=True, kind="classifier", work="classifier")


def shards() -> Any:
    return param("folder of shards made by `must shard`", metavar="URI", often=True, kind="shards", work="shards")


def index_sha256(shards: str = "shards") -> Any:
    text = f"refuse {shards} whose index has another sha256 (`must index show` prints it); any if empty"
    return param(text, "", metavar="HEX")


def batch_size(default: int = 256, **more: Any) -> Any:
    return param("images a forward pass", default, metavar="N", at_least=1, **more)


def workers() -> Any:
    return param("loader processes", 2, metavar="N", at_least=0)


def cache(**more: Any) -> Any:
    text = "folder on this machine's own disk for remote shards; ~/.cache/must/shards if empty"
    return param(text, "", metavar="DIR", **more)


def cache_gb() -> Any:
    return param("largest size of that folder in gigabytes, for all runs", CACHE_GB, metavar="GB", above=0)


def threads() -> Any:
    return param("threads of a forward pass; 0 means one a core", 0, metavar="N", at_least=0)


def device(of: str = "", **more: Any) -> Any:
    return param(f"{of}auto (cuda, else mps, else cpu), cpu, cuda, cuda:N or mps", "auto", **more)
