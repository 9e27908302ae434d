"""Progress bars: on a terminal and in a notebook, and none elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.std import tqdm


def bar(iterable: Any = None, *, quiet: bool = False, **options: Any) -> tqdm:
    """A bar with tqdm's `options`: tqdm.auto's in a notebook, which needs ipywidgets, else that of a terminal.

    Its `disable` tells whether there is none, so that lines can be printed instead.
    """
    if "ipykernel" not in sys.modules:  # tqdm.auto imports asyncio, which every command would wait for
        return tqdm(iterable, disable=quiet or None, **options)
    from tqdm.auto import tqdm as best
    from tqdm.notebook import tqdm_notebook

    shown = issubclass(best, tqdm_notebook)  # it writes to no terminal, and needs none
    return best(iterable, disable=True if quiet else False if shown else None, **options)
