"""A GPU for machines without one: its tensors lie on the CPU and compute there, but Python sees them on cuda:0.
They follow CUDA's rules: an operation on tensors of both devices fails, and so does `.numpy()` of a GPU's tensor.
What it cannot show: kernels, speed, memory, streams, half precision.

    python -m tests.gpu.pretend '[["adapt", "photos", ...], ["refine", "work"]]'   # several commands of must
"""

import contextlib
import json
import sys
import threading
from typing import Any

import open_clip  # noqa: F401, its import asks torch for real GPUs
import torch
import torch._dynamo  # replaces functions when it is imported
import torch.utils.data
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

GPU = torch.device("cuda", 0)
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")  # indices on the CPU pass


def is_gpu(device: Any) -> bool:
    return device is not None and (isinstance(device, int) or torch.device(device).type == GPU.type)


class GpuTensor(torch.Tensor):
    """`on_cpu`: the tensor on the CPU."""

    on_cpu: torch.Tensor

    @staticmethod
    def __new__(cls, tensor: torch.Tensor) -> "GpuTensor":
        layout = {"dtype": tensor.dtype, "strides": tensor.stride(), "storage_offset": tensor.storage_offset()}
        wrapped = torch.Tensor._make_wrapper_subclass(cls, tensor.shape, device="cpu", **layout)
        wrapped.on_cpu = tensor
        return wrapped

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return compute(function, args, kwargs or {})


def compute(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Computes on the CPU, after a check that all tensors are on one device; the results are on it as well."""
    name = function._schema.name
    values = tree_flatten((args, kwargs))[0]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    on_gpu = [isinstance(tensor, GpuTensor) for tensor in tensors]
    if any(on_gpu) and not all(on_gpu) and name != "aten::copy_":
        # Numbers on the CPU may be mixed with a GPU's tensors; of INDEXED, the indices as well.
        others = [value for value in (args[0], *args[2:3]) if name in INDEXED and isinstance(value, torch.Tensor)]
        others = others or tensors
        written = isinstance(args[0], torch.Tensor) and not on_gpu[0] and name.endswith("_")
        if written or any(tensor.dim() and not isinstance(tensor, GpuTensor) for tensor in others):
            shapes = [(type(tensor).__name__, *tensor.shape) for tensor in tensors]
            raise RuntimeError(f"Expected all tensors to be on the same device: {name} of {shapes}")
    if any(on_gpu) and any(isinstance(value, torch.Generator) for value in values):
        raise RuntimeError(f"Expected a 'cuda' device type for generator: {name}")
    device = kwargs.get("device")
    result_on_gpu = is_gpu(device) if device is not None else any(on_gpu)
    if name in ("aten::index", "aten::copy_", "aten::new_empty_strided"):  # of the last, autograd names the device
        result_on_gpu = on_gpu[0]
    args, kwargs = tree_map(lambda value: value.on_cpu if isinstance(value, GpuTensor) else value, (args, kwargs))
    if device is not None:
        kwargs["device"] = torch.device("cpu")
    result = function(*args, **kwargs)
    if on_gpu and on_gpu[0] and isinstance(result, torch.Tensor) and result is args[0]:  # changed in place
        return tensors[0]
    return tree_map(lambda value: wrap(value) if result_on_gpu else value, result)


def wrap(value: Any) -> Any:
    return GpuTensor(value) if isinstance(value, torch.Tensor) and not isinstance(value, GpuTensor) else value


class ToGpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return GpuTensor(tensor.detach())

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> torch.Tensor:
        return gradient.on_cpu


def to_gpu(tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, GpuTensor):
        return tensor
    return ToGpu.apply(tensor) if tensor.requires_grad else GpuTensor(tensor)


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(function, args, kwargs or {})


class Functions(TorchFunctionMode):
    """Python's view of the device: arguments, attributes, and the copies from one device to the other."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {name: value for name, value in (kwargs or {}).items() if name not in ("pin_memory", "non_blocking")}
        first = args[0] if args else None
        if isinstance(first, GpuTensor):
            if function in (torch.Tensor.numpy, torch.Tensor.__array__):
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
            if function is torch.Tensor.cpu:
                return first.on_cpu.detach().clone()
            if function is torch.Tensor.tolist:
                return first.on_cpu.tolist()
            if function is torch.Tensor.__deepcopy__:
                return self.copy(first, args[1])
            attribute = getattr(getattr(function, "__self__", None), "__name__", "")
            if function.__name__ == "__get__" and attribute in ("device", "is_cuda"):
                return GPU if attribute == "device" else True
        if function is torch.Tensor.to:
            return self.move(*args, **kwargs)
        if is_gpu(kwargs.get("device")):
            return to_gpu(function(*args, **kwargs | {"device": "cpu"}))
        return function(*args, **kwargs)

    def move(self, tensor: torch.Tensor, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        places = [device, *(a.device if isinstance(a, torch.Tensor) else a for a in args)]
        kinds = {kwargs.get("dtype"), *(value for value in args if isinstance(value, torch.dtype))} - {None}
        for place in places:
            if isinstance(place, str | torch.device):
                tensor = to_gpu(tensor) if is_gpu(place) else getattr(tensor, "on_cpu", tensor)
        return tensor.type(*kinds) if kinds else tensor

    def copy(self, tensor: GpuTensor, memo: dict[int, Any]) -> torch.Tensor:
        memo[id(tensor)] = copied = GpuTensor(tensor.on_cpu.detach().clone()).requires_grad_(tensor.requires_grad)
        if isinstance(tensor, torch.nn.Parameter):
            copied._is_param = True
        return copied


def install() -> None:
    """For the rest of the program: torch.cuda.is_available() is true, and the device is the pretended one."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch._has_compatible_shallow_copy_type = lambda tensor, other: False  # type: ignore[assignment]
    # Tensors of a subclass cannot be made in inference mode and used outside of it, as real ones can.
    torch.inference_mode = lambda mode=True: torch.no_grad() if mode is True else contextlib.nullcontext()  # type: ignore[assignment, misc, return-value]
    nothing = type("Nothing", (), {"synchronize": lambda self: None, "record": lambda self: None})
    for name, answer in {
        "is_available": True, "device_count": 1, "is_bf16_supported": False, "set_device": None, "synchronize": None,
        "current_stream": nothing(), "Event": nothing(),
    }.items():  # fmt: skip
        setattr(torch.cuda, name, lambda *args, answer=answer: answer)
    loader = torch.utils.data.DataLoader
    start = loader.__init__
    loader.__init__ = lambda self, *args, **options: start(self, *args, **options | {"pin_memory": False})  # type: ignore[method-assign]
    Functions().__enter__()
    Dispatch().__enter__()
    in_thread = threading.Thread.run

    def run(self: threading.Thread) -> None:  # a mode holds for its own thread alone
        with Functions(), Dispatch():
            in_thread(self)

    threading.Thread.run = run  # type: ignore[method-assign]


if __name__ == "__main__":
    install()
    from must.api.cli import main

    for command in json.loads(sys.argv[1]):
        main(command)
