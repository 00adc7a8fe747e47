"""Weights, gradients and moments cut into one part per process (FSDP2), for models that do not fit on one GPU.

A sharded module keeps the names of its weights; each is whole only while its block computes. What is saved is whole
again, so that a checkpoint does not know how many processes wrote it.

FSDP2 is imported where something is sharded: importing it takes a second, which every script would pay.
"""

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lab.layers import Recomputable
from lab.world import World


def shard(modules: Iterable[nn.Module], device: torch.device, world: World) -> None:
    """Cut the parameters of modules into parts, in place, block by block."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

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
    if hasattr(module, "set_requires_gradient_sync"):
        module.set_requires_gradient_sync(now)  # type: ignore[operator]


def whole(tensor: Tensor) -> Tensor:
    """Give a tensor in one piece. Of a sharded one every process must ask at the same time."""
    if _is_part(tensor):
        tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return tensor


def put(into: Tensor, values: Tensor) -> None:
    """Copy whole values into a tensor, of which each process may hold a part."""
    if _is_part(into):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(into, DTensor)
        values = distribute_tensor(values.to(into.device), into.device_mesh, into.placements)
    into.copy_(values)


def _is_part(tensor: Tensor) -> bool:
    """Whether a tensor is a ``DTensor``, of which a process holds a part."""
    return hasattr(tensor, "full_tensor")
