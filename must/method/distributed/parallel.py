"""Networks on several processes: a replica on each (DDP), or each parameter sharded over all of them (FSDP2).

Checkpoints and bundles always hold full state dicts under the same names, so that a run may resume with the other kind
and on another number of processes.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from must.method.distributed.process_group import World


def apply_fsdp(network: nn.Module, blocks: Iterable[nn.Module], bf16: bool) -> None:
    """Shards the parameters over the processes, in place: those of a block are gathered only while it computes.

    In bf16 the parameters are gathered as bf16; the shards and the sums of gradients stay float32.
    """
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
    for block in blocks:
        fully_shard(block, mp_policy=policy)
    fully_shard(network, mp_policy=policy, reshard_after_forward=True)  # the teacher has no backward pass to do it


def apply_ddp(network: nn.Module, world: World) -> nn.Module:
    """The network under DDP, which averages its gradients over the processes; itself, if there is only one."""
    if world.size == 1:
        return network
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)


def gradient_sync(network: nn.Module, last: bool) -> AbstractContextManager[None]:
    """A context for forward and backward: gradients are averaged over the processes only if this micro-batch is `last`.

    With FSDP it sets a flag of the module, which stays set until the next call.
    """
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(last)
    elif isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    return nullcontext()


def to_local(value: Tensor) -> Tensor:
    """This process's part of a sharded tensor (it shares its memory); any other tensor itself."""
    return value.to_local() if isinstance(value, DTensor) else value


def all_ranks(flag: Tensor, like: Tensor) -> Tensor:
    """Whether `flag` is true on all processes, if `like` is sharded over them: an all-reduce."""
    if isinstance(like, DTensor):
        flag = flag.int()
        dist.all_reduce(flag, dist.ReduceOp.MIN)
        flag = flag.bool()
    return flag


def full_state_dict(state: Any, keep: bool) -> Any:
    """A state dict with every sharded tensor gathered, in host memory where `keep`; all processes must call this."""
    if isinstance(state, DTensor):
        value = state.full_tensor()
        return value.cpu() if keep else None
    if isinstance(state, dict):
        return {name: full_state_dict(value, keep) for name, value in state.items()}
    if isinstance(state, list):
        return [full_state_dict(value, keep) for value in state]
    return state


def distribute_like(value: Tensor, like: Tensor) -> Tensor:
    """A full tensor, sharded in the same way as `like`."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def load_network(network: nn.Module, state: dict[str, Tensor]) -> None:
    current = network.state_dict()
    network.load_state_dict({name: distribute_like(value, current.get(name, value)) for name, value in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        number: {name: distribute_like(value, parameters[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})
