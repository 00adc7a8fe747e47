"""The tensors of a training state, by name: what a checkpoint stores and a resume takes back, strictly."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lab.errors import Refused
from lab.training.ema import Average
from lab.training.optimizer import Muon
from lab.training.sharding import put, whole

Players = Mapping[str, nn.Module]
Optimizers = Mapping[str, Sequence[torch.optim.Optimizer]]
Tensors = Mapping[str, Mapping[str, Tensor]]

MOMENTS = {torch.optim.AdamW: ("exp_avg", "exp_avg_sq", "step"), Muon: ("momentum",)}


def take(
    players: Players, optimizers: Optimizers, averages: Sequence[Average], memory: Mapping[str, Tensor]
) -> Tensors:
    """Give every tensor of the state as file stem -> name -> tensor."""
    tensors: dict[str, Mapping[str, Tensor]] = {
        "model": {
            f"{name}.{key}": value for name, player in players.items() for key, value in whole_state(player).items()
        },
        "optim": {
            f"{key}.{moment}": whole(value)
            for key, parameter, optimizer in _trainable(players, optimizers)
            for moment, value in _moments(optimizer, parameter).items()
        },
    }
    for average in averages:
        tensors[average_name(average.length)] = whole_state(average.module)
    return {**tensors, "memory": memory} if memory else tensors


def restore(
    tensors: Tensors,
    players: Players,
    optimizers: Optimizers,
    averages: Sequence[Average],
    memory: Mapping[str, Tensor],
) -> None:
    """Copy every tensor back where it belongs.

    Raises:
        Refused: one is missing, left over or of another shape.
    """
    try:
        fill(players, tensors["model"])
        for average in averages:
            _load(average.module, tensors[average_name(average.length)])
        _restore_moments(dict(tensors["optim"]), players, optimizers)
        _restore_memory(tensors.get("memory", {}), memory)
    except (KeyError, RuntimeError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise Refused(
            f"the checkpoint does not fit this configuration ({first}); use the run's own configuration"
        ) from error


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """Give a module's tensors in one piece; of a sharded one every process must ask at the same time."""
    return {name: whole(tensor) for name, tensor in module.state_dict().items()}


def average_name(length: float) -> str:
    """Name the file of an average."""
    return f"ema_{length:.3f}"


def weights(tensors: Tensors, average: str | None = None) -> Mapping[str, Tensor]:
    """Give the weights of every player as "<player>.<name>" -> tensor.

    Args:
        tensors: of a checkpoint.
        average: the file stem of the one that the model's weights are taken from, perhaps all that there is; ``None``
            for the raw ones.
    """
    averaged = {f"model.{name}": tensor for name, tensor in tensors[average].items()} if average else {}
    return {**tensors.get("model", {}), **averaged}


def misfits(weights: Mapping[str, Tensor], players: Players) -> list[str]:
    """List the weights that are missing, left over or of another shape, a few words each."""
    wanted = {
        f"{name}.{key}": tensor for name, player in players.items() for key, tensor in player.state_dict().items()
    }
    shapes = [
        f"{name} is {list(weights[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    missing = [f"{name} is missing" for name in wanted if name not in weights]
    return [*missing, *(f"{name} is left over" for name in weights if name not in wanted), *shapes]


def fill(players: Players, weights: Mapping[str, Tensor]) -> None:
    """Copy weights, as ``weights`` gives them, into players that they fit."""
    for name, player in players.items():
        prefix = f"{name}."
        own = {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
        _load(player, own)


def _trainable(players: Players, optimizers: Optimizers) -> Iterator[tuple[str, nn.Parameter, torch.optim.Optimizer]]:
    """Every trained parameter with its name and the one optimizer that holds it."""
    for name, player in players.items():
        holder = {
            id(p): optimizer
            for optimizer in optimizers[name]
            for group in optimizer.param_groups
            for p in group["params"]
        }
        for key, parameter in player.named_parameters():
            if parameter.requires_grad:
                yield f"{name}.{key}", parameter, holder[id(parameter)]


def _moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> Mapping[str, Tensor]:
    """What an optimizer remembers of a parameter: zeros before its first update, which may have been left out."""
    zeros = {
        moment: torch.zeros(()) if moment == "step" else torch.zeros_like(parameter).detach()
        for moment in MOMENTS[type(optimizer)]
    }
    return {**zeros, **optimizer.state.get(parameter, {})}


@torch.no_grad()
def _load(module: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Fill a module, of which each process may hold a part."""
    own = module.state_dict()
    shapes, wanted = ({name: tuple(each.shape) for name, each in some.items()} for some in (saved, own))
    if shapes != wanted:
        differing = sorted(name for name in {*shapes, *wanted} if shapes.get(name) != wanted.get(name))
        raise KeyError(f"weight {differing[0]}: {shapes.get(differing[0])} for {wanted.get(differing[0])}")
    for name, tensor in own.items():
        put(tensor, saved[name])


def _restore_memory(saved: Mapping[str, Tensor], memory: Mapping[str, Tensor]) -> None:
    shapes, wanted = ({name: each.shape for name, each in some.items()} for some in (saved, memory))
    if shapes != wanted:
        raise KeyError(f"the stage remembers {wanted}, but {shapes} was saved")
    for name, tensor in memory.items():
        tensor.copy_(saved[name])


def _restore_moments(moments: dict[str, Tensor], players: Players, optimizers: Optimizers) -> None:
    for key, parameter, optimizer in _trainable(players, optimizers):
        saved = {moment: moments.pop(f"{key}.{moment}") for moment in MOMENTS[type(optimizer)]}
        # empty_like keeps the parameter's memory layout, which safetensors does not.
        state = {
            moment: value.to(parameter.device) if moment == "step" else torch.empty_like(parameter).detach()
            for moment, value in saved.items()
        }
        for moment in saved.keys() - {"step"}:
            put(state[moment], saved[moment])
        optimizer.state[parameter] = state
    if moments:
        raise KeyError(f"the optimizer's {next(iter(moments))} belongs to nothing")
