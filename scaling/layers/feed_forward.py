"""The network at the end of a layer: Linear -> activation -> Linear -> dropout, four times wider inside."""

from torch import nn

from scaling.layers.dropout import Dropout
from scaling.spec import ModelSpec

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


def feed_forward(spec: ModelSpec, activation: str = "gelu") -> nn.Sequential:
    """The network, its first norm left to the layer."""
    return nn.Sequential(
        nn.Linear(spec.width, 4 * spec.width),
        ACTIVATIONS[activation](),
        nn.Linear(4 * spec.width, spec.width),
        Dropout(spec.dropout),
    )


def count(spec: ModelSpec) -> int:
    """Parameters, those of the norm before it included."""
    return 8 * spec.width**2 + 5 * spec.width + 2 * spec.width


def flops(spec: ModelSpec) -> int:
    """Forward floating-point operations for one token."""
    return 16 * spec.width**2
