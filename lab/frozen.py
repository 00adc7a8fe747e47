"""A module that is used and not trained."""

from typing import Generic, Self, TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module, covariant=True)


class Frozen(Generic[Module]):
    """Holds a module in evaluation mode, without gradients of its weights.

    A network that keeps it as an attribute has none of its weights among its own: they are in no checkpoint, no average
    and no optimizer, whoever moves the network leaves them where they are, and copies of the network share them.
    Gradients with respect to inputs pass.

    Args:
        module: what is held, where it computes.
    """

    def __init__(self, module: Module) -> None:
        self.module = module.eval().requires_grad_(False)

    def __deepcopy__(self, memo: object) -> Self:
        return self
