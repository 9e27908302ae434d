"""Progress bars: on a terminal and in a notebook, and none elsewhere."""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from tqdm.std import tqdm

from must.base.console import ASIDE

logger = logging.getLogger(__name__)


class Images(Protocol):
    @property
    def samples(self) -> Any:
        """Their numbers."""


Batch = TypeVar("Batch", bound=Images)


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


def watched(batches: Iterable[Batch], description: str) -> Iterator[Batch]:
    """The same batches, with a bar of their images in the first of several processes."""
    total = len(batches.numbers) if hasattr(batches, "numbers") else None
    first = os.environ.get("RANK", "0") == "0"
    with bar(total=total, unit="img", desc=description, leave=False, quiet=not first) as shown:
        for batch in batches:
            yield batch
            shown.update(len(batch.samples))


@contextmanager
def parts(command: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar of a stage's `total` parts; what it yields takes the name of the part that begins."""
    with bar(total=total, unit="part", desc=command, leave=False) as shown:
        begun = list[str]()

        def begin(name: str) -> None:
            shown.update(bool(begun))
            shown.set_postfix_str(name, refresh=True)
            begun.append(name)

        yield begin


def loading(command: str = "") -> None:
    """Says on a terminal that torch and a model are being loaded, unless torch is here already: it takes seconds."""
    if "torch" not in sys.modules and sys.stderr is not None and sys.stderr.isatty():
        logger.info(f"{f'must {command}: ' if command else ''}loading torch and the model ...", extra=ASIDE)
