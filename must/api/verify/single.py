"""One check, in the process that was started for it: `python -m must.api.verify.single FUNCTION DEVICE GPUS RESULT`."""

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from must.base.files import CLASSIFIER_FILE
from must.config import ClassifierConfig, DemoConfig, ShardConfig, TrainConfig


@dataclass
class Setting:
    """What a check runs on. The folder is shared by the checks: what one has made is there for the next."""

    device: str  # "cuda" or "cpu"
    gpus: int  # on a CPU, processes
    folder: Path

    @property
    def tiny(self) -> bool:
        return self.device == "cpu"

    @cached_property
    def data(self) -> dict[str, str]:
        """Shards of the bundled digits and the classifier of the bundled model, as parameters of `must train`."""
        from must.api.demo import demo
        from must.data.shards.build import shard
        from must.method.model.classifier import classifier

        root, done = self.folder / "data", self.folder / "data" / "done"
        found = {"shards": str(root / "shards"), "classifier": str(root / CLASSIFIER_FILE)}
        if not done.exists():
            demo(DemoConfig(output=str(root / "demo")))
            images = sorted((root / "demo/images/unlabeled").rglob("*.png"))
            for path in images[128:] if self.tiny else []:
                path.unlink()
            shard(ShardConfig(source=str(root / "demo/images/unlabeled"), output=found["shards"], workers=1))
            model = str(root / "demo/model")
            classes = str(root / "demo/classes.yaml")
            classifier(ClassifierConfig(classes=classes, model=model, output=found["classifier"]))
            done.touch()
        return found

    def train_config(self, **changes: Any) -> TrainConfig:
        """Of a short run on that data."""
        from must.base.parameters import load

        values = {"output": "unused", "preset": "digits", "batch_size": 32, "workers": 0, "device": self.device}
        return load(TrainConfig, {**self.data, **values, "select": "none", "trackers": [], **changes})


class CheckFailedError(Exception):
    """The check ran, and what it found is not as promised."""

    def __init__(self, detail: str, **values: Any) -> None:
        super().__init__(detail)
        self.values = values


Found = tuple[str, dict[str, Any]]  # one line, and the numbers behind it


def demand(holds: bool, detail: str, **values: Any) -> Found:
    """The check's outcome: passed with this line, or failed with it."""
    if not holds:
        raise CheckFailedError(detail, **values)
    return detail, values


def main(function: str, device: str, gpus: str, result: str) -> None:
    module, name, *arguments = function.split(":")
    check: Callable[..., Found] = getattr(importlib.import_module(f"must.api.verify.{module}"), name)
    setting = Setting(device, int(gpus), Path(result).parent)
    try:
        detail, values = check(setting, *arguments)
        status = "pass"
    except CheckFailedError as error:
        status, detail, values = "fail", str(error), error.values
    Path(result).write_text(json.dumps({"status": status, "detail": detail, "values": values}))


if __name__ == "__main__":
    main(*sys.argv[1:])
