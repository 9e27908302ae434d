"""A device on which nothing can be read: what would make the host wait for a GPU fails here, without one.

Tensors of the device "meta" have shapes and no values, so reading one is an error of torch's own. `unread` refuses what
torch lets pass there and a CUDA GPU would wait for: copies between host and device that are not `non_blocking` (those
of `torch.tensor(..., device=...)` among them) and indexing by booleans, the shape of which the device knows alone.

What "meta" cannot do (autocast, collectives) runs on the device "cpu" instead, with values: there reading is refused by
the operations' names, and copies between host and device are not seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")
NOT_LAUNCHED = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "detach", "lift_fresh"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
READING = {"tolist", "numpy", "__array__"}  # which torch does on a CPU without any operation
KNOWN_LATER = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class HostWaitsError(AssertionError):
    """An operation for which the host would wait until the device is done with all that was queued."""


@contextmanager
def unread(device: torch.device = DEVICE) -> Iterator[Counter[str]]:
    """In the block, operations on the device that the host would wait for raise HostWaitsError.

    Gives the operations that were launched on the device, by name; views and allocations are none. Attention counts as
    the operations it is made of, of which a GPU runs one.
    """
    mode = Dispatched(device)
    with FromTheHost(device), mode:
        yield mode.launches


class Dispatched(TorchDispatchMode):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.launches: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = tensors((args, kwargs))
        if any(value.device == self.device for value in given):
            by_booleans = name in INDEXING and any(part.dtype in (torch.bool, torch.uint8) for part in tensors(args[1]))
            if by_booleans or (KNOWN_LATER & set(func.tags) and name not in INDEXING):
                raise HostWaitsError(f"{name}{' by booleans' if by_booleans else ''}")
        result = func(*args, **kwargs)
        made = tensors(result)
        waits = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        if name in ("_to_copy", "copy_") and waits and len({value.device for value in [*given, *made]}) > 1:
            raise HostWaitsError(f"{name} between {given[-1].device} and {made[0].device}, not non_blocking")
        if (
            any(value.device == self.device for value in [*given, *made])
            and name not in NOT_LAUNCHED
            and not func.is_view
        ):
            self.launches[name] += 1
        return result


class FromTheHost(TorchFunctionMode):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device, name = kwargs.get("device"), getattr(func, "__name__", "")
        if func in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device) == self.device:
            raise HostWaitsError(f"{name}({args[0]}, device=...)")
        if name in READING and args[0].device == self.device:
            raise HostWaitsError(name)
        return func(*args, **kwargs)


def tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]
