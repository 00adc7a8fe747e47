"""Weights, gradients and moments cut into one part per process (FSDP2), for models that do not fit on one GPU.

A sharded module keeps the names of its weights; each is whole only while its block computes. What is saved is whole
again, so that a checkpoint does not know how many processes wrote it.
"""

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lab.layers import Recomputable
from lab.world import World


def shard(modules: Iterable[nn.Module], device: torch.device, world: World) -> None:
    """Cut the parameters of modules into parts, in place, block by block."""
    # Blocks end in a permuted view, which nobody changes in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (world.size,))
    for module in modules:
        for block in module.modules():
            if isinstance(block, Recomputable):
                fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)


def exchange_gradients(module: nn.Module, *, now: bool) -> None:
    """Say whether a sharded module's next way back adds the gradients of all processes up; others do not."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(now)


def whole(tensor: Tensor) -> Tensor:
    """Give a tensor in one piece. Of a sharded one every process must ask at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def put(into: Tensor, values: Tensor) -> None:
    """Copy whole values into a tensor, of which each process may hold a part."""
    if isinstance(into, DTensor):
        values = distribute_tensor(values.to(into.device), into.device_mesh, into.placements)
    into.copy_(values)
