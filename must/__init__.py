"""Adapt CLIP to your own images without labels: masked unsupervised self-training (arXiv 2206.02967)."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"
STAGES = (
    "adapt", "classifier", "demo", "evaluate", "export", "gate", "plan", "predict", "promote", "push", "refine",
    "select", "serve", "shard", "train",
)  # fmt: skip
LAZY = {"open_shards": "must.data.open_shards"}  # imported when first asked for: `import must` stays light
__all__ = [*STAGES, *LAZY]


class Face(ModuleType):
    """The module `must`: its stages are functions, made when they are first asked for.

    Some packages are named as a stage, and importing one makes Python set it here. The function stays, and finds in its
    own attributes what is in the package: `must.train(...)` trains, and `must.train.trainer` is the module.
    """

    def __getattr__(self, name: str) -> Any:
        if name in LAZY:
            return getattr(importlib.import_module(LAZY[name]), name)
        if name not in STAGES:
            raise AttributeError(f"module 'must' has no attribute '{name}'")
        function = importlib.import_module("must.api.functions").stage_function(name)
        super().__setattr__(name, function)
        if f"must.{name}" in sys.modules:
            self.join(name, sys.modules[f"must.{name}"])
        return function

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in STAGES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)
        elif name in vars(self):
            self.join(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*vars(self), *__all__})

    def join(self, name: str, package: ModuleType) -> None:
        function = vars(self)[name]
        vars(package).update(vars(function))  # its signature
        function.__dict__ = vars(package)


sys.modules[__name__].__class__ = Face
