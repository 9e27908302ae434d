"""Parameters that several stages have, with their defaults and help texts; and the values of --part."""

from dataclasses import MISSING
from typing import Any

from must.base.parameters import param, require

ALPHA = 0.35  # under --preset auto: docs/memory.md
RISK = 0.05  # share of wrong labels
METRICS = "report/metrics.json"  # in WORK
WORK = "or WORK, a folder that `must adapt` made, which has the other inputs, too"


def bundle(text: str, default: Any = MISSING, group: str = "input and output", kind: str = "bundle") -> Any:
    """The stage's model, or WORK."""
    text = f"{text}; {WORK}"
    return param(text, default, metavar="BUNDLE|WORK", group=group, often=True, bare=True, kind=kind, part="bundle")


def classifier(text: str, default: Any = MISSING) -> Any:
    return param(text, default, metavar="FILE", often=True, kind="classifier", part="classifier")


def shards(part: str = "shards", **more: Any) -> Any:
    return param("folder of shards made by `must shard`", metavar="URI", often=True, kind="shards", part=part, **more)


def features(**more: Any) -> Any:
    text = "folder of the pictures' features; those that are missing are computed and added; empty: they are not kept"
    return param(text, "", metavar="URI", kind="output", part="features", **more)


def output(text: str, **more: Any) -> Any:
    return param(text, often=True, kind="output", **{"metavar": "URI"} | more)


def index_sha256(shards: str = "shards") -> Any:
    text = f"refuse {shards} whose index has another sha256 (`must index show` prints it); any if empty"
    return param(text, "", metavar="HEX")


def risk(text: str) -> Any:
    return param(text, RISK, at_least=0.0001, below=1)


def batch_size(default: int = 256, **more: Any) -> Any:
    return param("images a forward pass", default, at_least=1, **more)


def workers() -> Any:
    return param("loader processes", 2, at_least=0)


def threads() -> Any:
    return param("threads of a forward pass; 0 means one a core", 0, at_least=0)


def device(of: str = "", **more: Any) -> Any:
    return param(f"{of}auto (cuda, else mps, else cpu), cpu, cuda, cuda:N or mps", "auto", **more)


def timeout() -> Any:
    text = "with several processes: seconds that one waits for the others before the run ends (exit code 75)"
    return param(text, 600, metavar="S", at_least=1)


def abstain(**more: Any) -> Any:
    text = "name no class where the top probability is below this; -1: the model's own threshold"
    return param(text, 0.0, metavar="T", **more)


def check_abstain(value: float) -> None:
    message = "--abstain must be from 0 to 1: it is a probability; or -1, for the threshold in the model"
    require(0 <= value <= 1 or value == -1, message)


def list_parts(programs: int) -> list[str]:
    """The values of --part for this number of programs."""
    return [f"{number}/{programs}" for number in range(1, programs + 1)]


def parse_part(part: str) -> tuple[int, int]:
    """(I, N) of --part, I from 1. 1/1 is all of the work."""
    numbers = [int(text) for text in part.split("/") if text.isascii() and text.isdigit() and len(text) < 10]
    require(part.count("/") == 1 and len(numbers) == 2, f"--part {part}: expected I/N, such as 1/4")
    number, count = numbers
    require(count >= 1, f"--part {part}: there is at least 1 part")
    require(1 <= number <= count, f"--part {part}: parts are numbered from 1 to {count}")
    return number, count
