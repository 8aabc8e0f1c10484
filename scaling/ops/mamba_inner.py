"""All of a Mamba block between its two large projections (Gu & Dao 2023, Figure 3, Algorithm 2 and Equation 2).

    x, z    = xz;   x = silu(conv(x))
    s, B, C = W_x x;   dt = softplus(W_dt s + bias)
    h[t] = exp(dt[t] A) h[t-1] + dt[t] B[t] x[t]          per channel, a state vector;  A = -exp(A_log)
    y[t] = (C[t] . h[t] + D x[t]) silu(z[t])

Names are those of mamba-ssm's ``mamba_inner_fn``; the layout is (batch, time, channel), the one in which projections
leave it. On a CPU one kernel does it all, sequence by sequence, and what a sequence needs stays in a core's cache.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from scaling.ops import _mamba_inner
from scaling.ops._mamba_inner import Sizes, sizes_of
from scaling.ops._rows import flat, rows, threads_of_torch
from scaling.ops.causal_conv import causal_conv
from scaling.ops.selective_scan import kernel_name, selective_scan, selective_scan_ref

CHUNKS = 8
"""Groups of sequences that sum parameter gradients on their own: a constant, so that sums do not depend on threads, of
which the backward pass cannot use more."""


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
        parameters = (conv_weight, conv_bias, x_weight, dt_weight, A_log, D, dt_bias)
        return torch.ops.scaling.mamba_inner(xz, *parameters)[0]
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
def _fused(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    A_log: Tensor,
    D: Tensor,
    dt_bias: Tensor,
) -> tuple[Tensor, Tensor]:
    """The result, and what was selected, for the way back.

    Parameters may all have an axis of members in front; the sequences of each member then follow those of another.
    """
    parameters = (conv_weight, conv_bias, x_weight, dt_weight, A_log, D, dt_bias)
    sizes, constants = _constants(parameters, xz.shape[1])
    mixing = constants[:, : sizes.selected].transpose(1, 2).contiguous()
    y, chosen = xz.new_empty(*xz.shape[:2], sizes.channels), xz.new_empty(*xz.shape[:2], sizes.selected)
    workers = min(threads_of_torch(), len(xz))
    given = flat(_widened(xz, 2, sizes.channels)), rows(constants), flat(mixing)
    _mamba_inner.forward(*given, sizes, len(constants), len(xz), flat(y), flat(chosen), workers)
    return _narrowed(y, 1, D.shape[-1]), chosen


@_fused.register_fake
def _(xz, *parameters):  # type: ignore[no-untyped-def]
    D, selected = parameters[5], _sizes(parameters, xz.shape[1]).selected
    return xz.new_empty(*xz.shape[:2], D.shape[-1]), xz.new_empty(*xz.shape[:2], selected)


@torch.library.custom_op("scaling::mamba_inner_backward", mutates_args=())
def _fused_backward(
    dy: Tensor,
    chosen: Tensor,
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_weight: Tensor,
    dt_weight: Tensor,
    A_log: Tensor,
    D: Tensor,
    dt_bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``xz`` and of the parameters."""
    parameters = (conv_weight, conv_bias, x_weight, dt_weight, A_log, D, dt_bias)
    sizes, constants = _constants(parameters, xz.shape[1])
    members = len(constants)
    sums = xz.new_zeros(members, min(len(xz) // members, CHUNKS), *constants.shape[1:])
    given = flat(_widened(dy, 1, sizes.channels)), flat(_widened(xz, 2, sizes.channels)), rows(constants), flat(chosen)
    d_xz = xz.new_empty(*xz.shape[:2], 2 * sizes.channels)
    added_up = rows(sums.flatten(0, 1))
    workers = min(threads_of_torch(), len(added_up))
    _mamba_inner.backward(*given, sizes, members, len(xz), flat(d_xz), added_up, workers)
    d_parameters = tuple(parameter.new_empty(parameter.shape) for parameter in parameters)
    _mamba_inner.distribute(sizes, sums.numpy(), constants.numpy(), *_arrays(d_parameters))
    return _narrowed(d_xz, 2, D.shape[-1]), *d_parameters


@_fused_backward.register_fake
def _(dy, chosen, xz, *parameters):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(x) for x in (xz, *parameters))


Parameters = tuple[Tensor, ...]
"""Those of :func:`mamba_inner`."""


def _sizes(parameters: Parameters, time: int) -> Sizes:
    conv_weight, _, _, dt_weight, A_log, D, _ = parameters
    return sizes_of(time, D.shape[-1], A_log.shape[-1], dt_weight.shape[-1], conv_weight.shape[-1])


def _constants(parameters: Parameters, time: int) -> tuple[Sizes, Float[Tensor, "member row lane"]]:
    sizes = _sizes(parameters, time)
    arrays = _arrays(parameters)
    constants = torch.zeros(len(arrays[-1]), sizes.dt_bias + 1, sizes.channels)
    _mamba_inner.lay_out(sizes, *arrays, constants.numpy())
    return sizes, constants
def _arrays(parameters: Parameters) -> list[np.ndarray]:
    """The parameters' memory, with an axis of members in front."""
    *_, D, _ = parameters
    return [(x if D.dim() > 1 else x[None]).detach().contiguous().numpy() for x in parameters]


def _widened(x: Tensor, parts: int, channels: int) -> Tensor:
    """The tensor, contiguous, each part of its last axis followed by zeros up to a number of channels."""
    missing = channels - x.shape[-1] // parts
    return functional.pad(x.unflatten(-1, (parts, -1)), (0, missing)).flatten(-2) if missing else x.contiguous()


def _narrowed(x: Tensor, parts: int, channels: int) -> Tensor:
    """Without those zeros."""
    return x.unflatten(-1, (parts, -1))[..., :channels].flatten(-2).contiguous()


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # signature fixed by torch.library
    ctx.save_for_backward(output[1], *inputs)
    ctx.set_materialize_grads(False)  # nothing is done with what was selected


def _differentiate(ctx, dy, _):  # type: ignore[no-untyped-def]
    return torch.ops.scaling.mamba_inner_backward(dy, *ctx.saved_tensors)


torch.library.register_autograd("scaling::mamba_inner", _differentiate, setup_context=_save)


@torch.library.register_vmap("scaling::mamba_inner")
def _over_members(info, in_dims, *given):  # type: ignore[no-untyped-def]
    """A population's sequences one member after another."""
    size = info.batch_size
    each = [x.expand(size, *x.shape) if at is None else x.movedim(at, 0) for x, at in zip(given, in_dims, strict=True)]
    found = torch.ops.scaling.mamba_inner(each[0].flatten(0, 1), *each[1:])
    return tuple(x.unflatten(0, (size, -1)) for x in found), (0, 0)
