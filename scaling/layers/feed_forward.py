"""The network at the end of a layer: Linear -> activation -> Linear -> dropout, four times wider inside."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scaling.layers.dropout import Dropout
from scaling.ops.feed_forward import feed_forward
from scaling.ops.norm import norm_of
from scaling.spec import ModelSpec

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


class FeedForward(nn.Sequential):
    """The network, its first norm left to the layer."""

    def __init__(self, spec: ModelSpec, activation: str = "gelu") -> None:
        super().__init__(
            nn.Linear(spec.width, 4 * spec.width),
            ACTIVATIONS[activation](),
            nn.Linear(4 * spec.width, spec.width),
            Dropout(spec.dropout),
        )
        self.activation = activation

    def added(self, x: Float[Tensor, "*batch width"], norm: nn.LayerNorm) -> Float[Tensor, "*batch width"]:
        """X + self(norm(x)): by kernels of its own on a CPU in single precision, else part by part.

        So too where tokens come one at a time: to lay the weights out for a kernel would take longer.
        """
        if x.device.type != "cpu" or x.dtype != torch.float32 or x.ndim == 2 or torch.is_autocast_enabled("cpu"):
            return x + self(norm(x))
        first, _, second, dropout = self
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        assert isinstance(dropout, Dropout)
        parameters = (first.weight, first.bias, second.weight, second.bias)
        return feed_forward(x, *parameters, self.activation, dropout.draw(x), norm_of(norm))


def count(spec: ModelSpec) -> int:
    """Parameters, those of the norm before it included."""
    return 8 * spec.width**2 + 5 * spec.width + 2 * spec.width


def flops(spec: ModelSpec) -> int:
    """Forward floating-point operations for one token."""
    return 16 * spec.width**2
