"""All of a Mamba block between its two large projections (Gu & Dao 2023, Figure 3, Algorithm 2 and Equation 2).

    x, z    = xz;   x = silu(conv(x))
    s, B, C = W_x x;   dt = softplus(W_dt s + bias)
    h[t] = exp(dt[t] A) h[t-1] + dt[t] B[t] x[t]          per channel, a state vector;  A = -exp(A_log)
    y[t] = (C[t] . h[t] + D x[t]) silu(z[t])

Names are those of mamba-ssm's ``mamba_inner_fn``; the layout is (batch, time, channel), the one in which projections
leave it. On a CPU one kernel does it all, sequence by sequence, and what a sequence needs stays in a core's cache.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from scaling.ops import _mamba_inner
from scaling.ops._rows import array, threads_of_torch
from scaling.ops.causal_conv import causal_conv
from scaling.ops.selective_scan import kernel_name, selective_scan, selective_scan_ref

LN2 = math.log(2.0)

CHUNKS = 32
"""Groups of sequences that sum parameter gradients on their own: a constant, so that sums do not depend on threads."""


def mamba_inner(
    xz: Float[Tensor, "batch time twice_channel"],
    conv_weight: Float[Tensor, "channel tap"],
    conv_bias: Float[Tensor, " channel"],
    x_weight: Float[Tensor, "rank_and_two_states channel"],
    dt_weight: Float[Tensor, "channel rank"],
    A_log: Float[Tensor, "channel state"],
    D: Float[Tensor, " channel"],
    dt_bias: Float[Tensor, " channel"],
) -> Float[Tensor, "batch time channel"]:
    """What the output projection is given: by one Numba kernel on a CPU in single precision, else part by part."""
    if kernel_name(xz.device.type, xz.dtype) == "numba":
        vectors = [x[None] for x in (conv_bias, D, dt_bias)]
        parameters = torch.cat([x_weight, dt_weight.t(), A_log.t(), conv_weight.t(), *vectors])
        return torch.ops.scaling.mamba_inner(xz, parameters[None], dt_weight.shape[1], A_log.shape[1])[0]
    x, z = xz.chunk(2, dim=-1)
    with torch.autocast(xz.device.type, enabled=False):
        x = causal_conv(x, conv_weight, conv_bias)
    delta, B, C = selected(x, x_weight, dt_weight, A_log.shape[1])
    with torch.autocast(xz.device.type, enabled=False):
        return selective_scan(x, delta, -A_log.exp(), B, C, D, z, dt_bias)


def mamba_inner_ref(
    xz: Float[Tensor, "batch time twice_channel"],
    conv_weight: Float[Tensor, "channel tap"],
    conv_bias: Float[Tensor, " channel"],
    x_weight: Float[Tensor, "rank_and_two_states channel"],
    dt_weight: Float[Tensor, "channel rank"],
    A_log: Float[Tensor, "channel state"],
    D: Float[Tensor, " channel"],
    dt_bias: Float[Tensor, " channel"],
) -> Float[Tensor, "batch time channel"]:
    """The same as the equations say it, on any device and in any precision."""
    x, z = xz.chunk(2, dim=-1)
    x = causal_conv(x, conv_weight, conv_bias)
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


@torch.library.custom_op("scaling::mamba_inner", mutates_args=())
def _fused(xz: Tensor, parameters: Tensor, rank: int, states: int) -> tuple[Tensor, Tensor]:
    """The result, and what was selected, for the way back.

    Args:
        xz: (member batch, time, 2 channel): the sequences of each member of a population follow those of another.
        parameters: (member, row, channel): W_x, W_dt, A_log, taps, bias of the convolution, D and bias of the step
            sizes, each with its channels along the last axis.
        rank: of the step sizes' projection.
        states: per channel.

    """
    batch, time, channels = *xz.shape[:2], parameters.shape[2]
    y, chosen = xz.new_empty(batch, time, channels), xz.new_zeros(batch, time, rank + 2 * states)
    constants = _constants(parameters, rank, states)
    threads_of_torch()
    _mamba_inner.forward(array(xz.contiguous()), array(constants), rank, states, array(chosen), array(y))
    return y, chosen


@_fused.register_fake
def _(xz: Tensor, parameters: Tensor, rank: int, states: int) -> tuple[Tensor, Tensor]:
    return xz.new_empty(*xz.shape[:2], parameters.shape[2]), xz.new_empty(*xz.shape[:2], rank + 2 * states)


@torch.library.custom_op("scaling::mamba_inner_backward", mutates_args=())
def _fused_backward(
    dy: Tensor, xz: Tensor, parameters: Tensor, chosen: Tensor, rank: int, states: int
) -> tuple[Tensor, Tensor]:
    members, count, channels = parameters.shape
    chunks = min(len(xz) // members, CHUNKS)
    d_xz, sums = torch.empty_like(xz), xz.new_zeros(members * chunks, count, channels)
    constants = _constants(parameters, rank, states)
    given = [array(x.contiguous()) for x in (dy, xz, constants, chosen)]
    workers = min(threads_of_torch(), len(sums))
    _mamba_inner.backward(*given, rank, states, array(d_xz), array(sums), workers)
    d_parameters = sums.view(members, chunks, count, channels).sum(1)
    first = 2 * rank + 2 * states
    d_parameters[:, first : first + states] *= LN2 * constants[:, first : first + states]
    return d_xz, d_parameters


@_fused_backward.register_fake
def _(dy: Tensor, xz: Tensor, parameters: Tensor, chosen: Tensor, rank: int, states: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(xz), torch.empty_like(parameters)


def _constants(parameters: Tensor, rank: int, states: int) -> Tensor:
    """The parameters with A / ln 2 in place of the logarithm of -A."""
    constants = parameters.clone(memory_format=torch.contiguous_format)
    first = 2 * rank + 2 * states
    constants[:, first : first + states].exp_().div_(-LN2)
    return constants


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # signature fixed by torch.library
    xz, parameters, ctx.rank, ctx.states = inputs
    ctx.save_for_backward(xz, parameters, output[1])
    ctx.set_materialize_grads(False)  # nothing is done with what was selected


def _differentiate(ctx, dy, _):  # type: ignore[no-untyped-def]
    d_xz, d_parameters = torch.ops.scaling.mamba_inner_backward(dy, *ctx.saved_tensors, ctx.rank, ctx.states)
    return d_xz, d_parameters, None, None


torch.library.register_autograd("scaling::mamba_inner", _differentiate, setup_context=_save)


@torch.library.register_vmap("scaling::mamba_inner")
def _over_members(info, in_dims, xz, parameters, rank, states):  # type: ignore[no-untyped-def]
    """A population's sequences one member after another; its parameters already have an axis for members."""
    size = info.batch_size
    xz = xz.movedim(in_dims[0], 0) if in_dims[0] is not None else xz.expand(size, *xz.shape)
    own = in_dims[1] is not None
    parameters = parameters.movedim(in_dims[1], 0) if own else parameters.expand(size, *parameters.shape)
    found = torch.ops.scaling.mamba_inner(xz.flatten(0, 1), parameters.flatten(0, 1), rank, states)
    return tuple(x.unflatten(0, (size, -1)) for x in found), (0, 0)
