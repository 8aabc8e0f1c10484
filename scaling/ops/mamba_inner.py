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
from scaling.ops._mamba_inner import Sizes, sizes_of
from scaling.ops._rows import flat, rows, threads_of_torch
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
    members, channels = len(parameters), parameters.shape[2]
    sizes, constants = _prepared(parameters, xz.shape[1], rank, states)
    mixing = constants[:, : sizes.selected].transpose(1, 2).contiguous()
    y = xz.new_empty(*xz.shape[:2], sizes.channels)
    chosen = xz.new_empty(*xz.shape[:2], sizes.selected)
    workers = min(threads_of_torch(), len(xz))
    given = [flat(x) for x in (_widened(xz, 2, sizes.channels), constants, mixing)]
    _mamba_inner.forward(given[0], rows(constants), given[2], sizes, members, len(xz), flat(y), flat(chosen), workers)
    return _narrowed(y, 1, channels), chosen


@_fused.register_fake
def _(xz: Tensor, parameters: Tensor, rank: int, states: int) -> tuple[Tensor, Tensor]:
    sizes = _sizes(parameters, xz.shape[1], rank, states)
    return xz.new_empty(*xz.shape[:2], parameters.shape[2]), xz.new_empty(*xz.shape[:2], sizes.selected)


@torch.library.custom_op("scaling::mamba_inner_backward", mutates_args=())
def _fused_backward(
    dy: Tensor, xz: Tensor, parameters: Tensor, chosen: Tensor, rank: int, states: int
) -> tuple[Tensor, Tensor]:
    members, _, channels = parameters.shape
    chunks = min(len(xz) // members, CHUNKS)
    sizes, constants = _prepared(parameters, xz.shape[1], rank, states)
    sums = xz.new_zeros(members * chunks, *constants.shape[1:])
    given = [_widened(dy, 1, sizes.channels), _widened(xz, 2, sizes.channels)]
    d_xz = torch.empty_like(given[1])
    workers = min(threads_of_torch(), len(sums))
    _mamba_inner.backward(
        *map(flat, given), rows(constants), flat(chosen), sizes, members, len(xz), flat(d_xz), rows(sums), workers
    )
    summed = sums.view(members, chunks, *sums.shape[1:]).sum(1)
    summed[:, sizes.A : sizes.conv] *= LN2 * constants[:, sizes.A : sizes.conv]
    d_parameters = summed[:, _places(sizes, rank, states, _taps(parameters, rank, states)), :channels]
    return _narrowed(d_xz, 2, channels), d_parameters


@_fused_backward.register_fake
def _(dy: Tensor, xz: Tensor, parameters: Tensor, chosen: Tensor, rank: int, states: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(xz), torch.empty_like(parameters)


def _taps(parameters: Tensor, rank: int, states: int) -> int:
    return parameters.shape[1] - 2 * rank - 3 * states - 3


def _sizes(parameters: Tensor, time: int, rank: int, states: int) -> Sizes:
    return sizes_of(time, parameters.shape[2], states, rank, _taps(parameters, rank, states))


def _prepared(parameters: Tensor, time: int, rank: int, states: int) -> tuple[Sizes, Float[Tensor, "member row lane"]]:
    """The kernel's constants: parameters where it wants them among zeros, with A / ln 2 in place of log -A."""
    sizes = _sizes(parameters, time, rank, states)
    constants = parameters.new_zeros(len(parameters), sizes.dt_bias + 1, sizes.channels)
    places = _places(sizes, rank, states, _taps(parameters, rank, states))
    constants[:, places, : parameters.shape[2]] = parameters
    own = constants[:, sizes.A : sizes.A + states, : parameters.shape[2]]
    own.exp_().div_(-LN2)
    return sizes, constants


def _places(sizes: Sizes, rank: int, states: int, taps: int) -> list[int]:
    """The kernel's row of each row of the parameters."""
    first_tap = sizes.D - 1 - taps
    starts = (2 * sizes.states, rank), (0, states), (sizes.states, states), (sizes.dt_weight, rank), (sizes.A, states)
    several = [start + row for start, count in (*starts, (first_tap, taps)) for row in range(count)]
    return [*several, sizes.D - 1, sizes.D, sizes.dt_bias]


def _widened(x: Tensor, parts: int, channels: int) -> Tensor:
    """The tensor, contiguous, each part of its last axis followed by zeros up to a number of channels."""
    missing = channels - x.shape[-1] // parts
    return functional.pad(x.unflatten(-1, (parts, -1)), (0, missing)).flatten(-2) if missing else x.contiguous()


def _narrowed(x: Tensor, parts: int, channels: int) -> Tensor:
    """Without those zeros."""
    return x.unflatten(-1, (parts, -1))[..., :channels].flatten(-2).contiguous()


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
