"""A layer normalisation that an operation takes in, with the residual around both: y = x + f(norm(x))."""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional


class Norm(NamedTuple):
    """What it computes with."""

    weight: Tensor
    bias: Tensor
    eps: float

    def of(self, x: Tensor) -> Tensor:
        """The normalised."""
        return functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


def norm_of(module: nn.LayerNorm) -> Norm:
    """That of a module."""
    return Norm(module.weight, module.bias, module.eps)
