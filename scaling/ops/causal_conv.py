"""Causal depthwise convolution followed by SiLU, as in the Mamba block.

y[t, c] = silu( bias[c] + sum_k weight[c, k] x[t - K + 1 + k, c] ),  x = 0 before the window
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def causal_conv(
    x: Float[Tensor, "batch time channel"], weight: Float[Tensor, "channel tap"], bias: Float[Tensor, " channel"]
) -> Float[Tensor, "batch time channel"]:
    """The convolution and its activation."""
    taps = weight.shape[1]
    padded = functional.pad(x.transpose(1, 2), (taps - 1, 0))
    return functional.silu(functional.conv1d(padded, weight[:, None], bias, groups=weight.shape[0])).transpose(1, 2)
