"""Adapt CLIP to your own images without labels: masked unsupervised self-training (arXiv 2206.02967)."""

import importlib
import logging
from typing import Any

from must.base.errors import MustError, TransientError, UserError
from must.table import COMMANDS, ERRORS, NOT_STAGES

__version__ = "0.1.0"
__all__ = sorted([*ERRORS, *COMMANDS, *NOT_STAGES])

logging.getLogger("must").addHandler(logging.NullHandler())  # the program configures logging: docs/python.md


def __getattr__(name: str) -> Any:
    """A stage's function, created at its first use, so that `import must` is fast."""
    if name not in __all__:
        raise AttributeError(f"module 'must' has no attribute '{name}'")
    return globals().setdefault(name, importlib.import_module("must.api.run").make_function(name))


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
