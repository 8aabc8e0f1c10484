"""All of a Mamba block between its two large projections (Gu & Dao 2023, Figure 3, Algorithm 2 and Equation 2).

    x, z    = xz;   x = silu(conv(x))
    s, B, C = W_x x;   dt = softplus(W_dt s + bias)
    h[t] = exp(dt[t] A) h[t-1] + dt[t] B[t] x[t]          per channel, a state vector;  A = -exp(A_log)
    y[t] = (C[t] . h[t] + D x[t]) silu(z[t])

Names are those of mamba-ssm's ``mamba_inner_fn``; the layout is (batch, time, channel), the one in which projections
leave it. On a CPU one kernel does it all, sequence by sequence, and what a sequence needs stays in a core's cache.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from scaling.ops import _mamba_inner
from scaling.ops._mamba_layout import Sizes, distribute, lay_out, sizes_of
from scaling.ops._rows import CHUNKS, by_member, flat, signed, threads_of_torch
from scaling.ops.causal_conv import causal_conv
from scaling.ops.selective_scan import kernel_name, selective_scan, selective_scan_ref


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
        y: Tensor = _Fused.apply(xz, *parameters)[0]
        return y
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


Parameters = Sequence[Tensor]
"""All but the first of what :func:`mamba_inner` is given, in its order.

Each may have an axis of members in front; the sequences of each member then follow those of another.
"""


class _Fused(torch.autograd.Function):
    """The result, and for the way back what was selected and the parameters as the kernels want them.

    Mapped over, the members of a population in one call.
    """

    @staticmethod
    @signed
    def forward(xz: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, selected, constants = torch.ops.scaling.mamba_inner(xz, parameters)
        return y, selected, constants

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output[1:], *inputs)
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: None) -> tuple[Tensor, ...]:
        selected, constants, xz, *parameters = ctx.saved_tensors
        return tuple(torch.ops.scaling.mamba_inner_backward(dy, selected, constants, xz, parameters))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *given: Tensor
    ) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, int, int]]:
        xz, *parameters = by_member(info, in_dims, given)
        y, selected, constants = _Fused.apply(xz.flatten(0, 1), *parameters)
        y, selected = (x.unflatten(0, (info.batch_size, -1)) for x in (y, selected))
        return (y, selected, constants), (0, 0, 0)


def _forward(xz: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor, Tensor]:
    arrays = _arrays(parameters)
    sizes = _sizes(arrays, xz.shape[1])
    laid_out = _laid_out(arrays, sizes)
    channels, members = parameters[0].shape[-2], len(laid_out[0])
    y, selected = torch.empty(*xz.shape[:2], sizes.channels), torch.empty(*xz.shape[:2], sizes.selected)
    workers = min(threads_of_torch(), len(xz))
    given = flat(_widened(xz, 2, sizes.channels)), *laid_out
    _mamba_inner.forward(*given, sizes, members, len(xz), flat(y), flat(selected), workers)
    return _narrowed(y, 1, channels), selected, torch.from_numpy(laid_out[0])


def _backward(dy: Tensor, selected: Tensor, laid_out: Tensor, xz: Tensor, parameters: Parameters) -> list[Tensor]:
    d_parameters = [torch.empty(parameter.shape) for parameter in parameters]
    arrays, constants = _arrays(d_parameters), laid_out.numpy()
    sizes = _sizes(arrays, xz.shape[1])
    channels, members = parameters[0].shape[-2], len(constants)
    given = flat(_widened(dy, 1, sizes.channels)), flat(_widened(xz, 2, sizes.channels)), constants, flat(selected)
    d_xz = torch.empty(*xz.shape[:2], 2 * sizes.channels)
    sums = np.zeros((members, max(1, min(len(xz) // members, CHUNKS)), constants.shape[1]), np.float32)
    chunks = sums.reshape(-1, constants.shape[1])
    workers = min(threads_of_torch(), len(chunks))
    _mamba_inner.backward(*given, sizes, members, len(xz), flat(d_xz), chunks, workers)
    distribute(sizes, sums, constants, *arrays)
    return [_narrowed(d_xz, 2, channels), *d_parameters]


_LIBRARY = torch.library.Library("scaling", "FRAGMENT")
"""The kernels are operators, so that a profiler knows them by name."""
_LIBRARY.define("mamba_inner(Tensor xz, Tensor[] parameters) -> (Tensor, Tensor, Tensor)")
_LIBRARY.impl("mamba_inner", _forward, "CPU")
_LIBRARY.define(
    "mamba_inner_backward(Tensor dy, Tensor selected, Tensor constants, Tensor xz, Tensor[] parameters) -> Tensor[]"
)
_LIBRARY.impl("mamba_inner_backward", _backward, "CPU")


def _sizes(arrays: Sequence[np.ndarray], time: int) -> Sizes:
    conv_weight, _, _, dt_weight, A_log, D, _ = arrays
    return sizes_of(time, D.shape[-1], A_log.shape[-1], dt_weight.shape[-1], conv_weight.shape[-1])


def _laid_out(arrays: Sequence[np.ndarray], sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """The parameters as the kernels want them, a row for each member; and W_x once more, turned."""
    members = len(arrays[-1])
    constants = np.zeros((members, (sizes.dt_bias + 1) * sizes.channels), np.float32)
    mixing = np.zeros(members * sizes.channels * sizes.selected, np.float32)
    lay_out(sizes, *arrays, constants, mixing)
    return constants, mixing


def _arrays(parameters: Parameters) -> list[np.ndarray]:
    """Their memory, with an axis of members in front."""
    arrays = [x.detach().contiguous().numpy() for x in parameters]
    return arrays if arrays[-1].ndim > 1 else [x[None] for x in arrays]


def _widened(x: Tensor, parts: int, channels: int) -> Tensor:
    """The tensor, contiguous, each part of its last axis followed by zeros up to a number of channels."""
    missing = channels - x.shape[-1] // parts
    return functional.pad(x.unflatten(-1, (parts, -1)), (0, missing)).flatten(-2) if missing else x.contiguous()


def _narrowed(x: Tensor, parts: int, channels: int) -> Tensor:
    """Without those zeros."""
    if x.shape[-1] == parts * channels:
        return x
    return x.unflatten(-1, (parts, -1))[..., :channels].flatten(-2).contiguous()
