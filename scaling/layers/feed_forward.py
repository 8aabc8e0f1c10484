"""The network at the end of a layer: Linear -> activation -> Linear -> dropout, four times wider inside."""

import torch
from torch import Tensor, nn

from scaling.layers.dropout import Dropout
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

    def in_one_kernel(self, x: Tensor) -> bool:
        """Whether a kernel computes it all: on a CPU in single precision.

        Not where tokens come one at a time: to lay the weights out for a kernel would take longer.
        """
        single = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return single and x.ndim > 2

    def parameters_in_order(self) -> list[Tensor]:
        """All parameters, as :class:`scaling.ops.layers.Form` says."""
        first, _, second, _ = self
        return [first.weight, first.bias, second.weight, second.bias]  # type: ignore[list-item]

    @property
    def dropout(self) -> Dropout:
        """What comes last."""
        dropout = self[3]
        assert isinstance(dropout, Dropout)
        return dropout


def count(spec: ModelSpec) -> int:
    """Parameters, those of the norm before it included."""
    return 8 * spec.width**2 + 5 * spec.width + 2 * spec.width


def flops(spec: ModelSpec) -> int:
    """Forward floating-point operations for one token."""
    return 16 * spec.width**2
