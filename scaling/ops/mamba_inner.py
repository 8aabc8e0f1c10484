"""All of a Mamba block between its two large projections (Gu & Dao 2023, Figure 3, Algorithm 2 and Equation 2).

    x, z    = xz;   x = silu(conv(x))
    s, B, C = W_x x;   dt = softplus(W_dt s + bias)
    h[t] = exp(dt[t] A) h[t-1] + dt[t] B[t] x[t]          per channel, a state vector;  A = -exp(A_log)
    y[t] = (C[t] . h[t] + D x[t]) silu(z[t])

Names are those of mamba-ssm's ``mamba_inner_fn``; the layout is (batch, time, channel), the one in which projections
leave it. On a CPU in single precision :mod:`scaling.ops.layers` does this and all around it.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from scaling.ops.causal_conv import causal_conv
from scaling.ops.selective_scan import selective_scan, selective_scan_ref


def mamba_inner(
    xz: Float[Tensor, "batch time twice_channel"],
    conv_weight: Float[Tensor, "channel 1 tap"],
    conv_bias: Float[Tensor, " channel"],
    x_weight: Float[Tensor, "rank_and_two_states channel"],
    dt_weight: Float[Tensor, "channel rank"],
    A_log: Float[Tensor, "channel state"],
    D: Float[Tensor, " channel"],
    dt_bias: Float[Tensor, " channel"],
) -> Float[Tensor, "batch time channel"]:
    """What the output projection is given, part by part."""
    x, z = xz.chunk(2, dim=-1)
    with torch.autocast(xz.device.type, enabled=False):
        x = causal_conv(x, conv_weight.squeeze(1), conv_bias)
    delta, B, C = selected(x, x_weight, dt_weight, A_log.shape[1])
    with torch.autocast(xz.device.type, enabled=False):
        return selective_scan(x, delta, -A_log.exp(), B, C, D, z, dt_bias)


def mamba_inner_ref(
    xz: Float[Tensor, "batch time twice_channel"],
    conv_weight: Float[Tensor, "channel 1 tap"],
    conv_bias: Float[Tensor, " channel"],
    x_weight: Float[Tensor, "rank_and_two_states channel"],
    dt_weight: Float[Tensor, "channel rank"],
    A_log: Float[Tensor, "channel state"],
    D: Float[Tensor, " channel"],
    dt_bias: Float[Tensor, " channel"],
) -> Float[Tensor, "batch time channel"]:
    """The same as the equations say it, on any device and in any precision."""
    x, z = xz.chunk(2, dim=-1)
    x = causal_conv(x, conv_weight.squeeze(1), conv_bias)
    delta, B, C = selected(x, x_weight, dt_weight, A_log.shape[1])
    return selective_scan_ref(x, delta, -A_log.exp(), B, C, D, z, dt_bias)


def selected(
    x: Float[Tensor, "*batch channel"], x_weight: Tensor, dt_weight: Tensor, states: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What the convolved input selects: step sizes before bias and softplus, B and C, in single precision at least."""
    low_rank, B, C = functional.linear(x, x_weight).split([dt_weight.shape[1], states, states], dim=-1)
    delta = functional.linear(low_rank, dt_weight)
    return at_least_single(delta), at_least_single(B), at_least_single(C)


def at_least_single(x: Tensor) -> Tensor:
    """The tensor, in single precision if it was in half."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
