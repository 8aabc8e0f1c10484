"""All of a Mamba block between its two large projections (Gu & Dao 2023, Figure 3, Algorithm 2 and Equation 2).

    x, z    = xz;   x = silu(conv(x))
    s, B, C = W_x x;   dt = softplus(W_dt s + bias)
    h[t] = exp(dt[t] A) h[t-1] + dt[t] B[t] x[t]          per channel, a state vector;  A = -exp(A_log)
    y[t] = (C[t] . h[t] + D x[t]) silu(z[t])

Names are those of mamba-ssm's ``mamba_inner_fn``; the layout is (batch, time, channel), the one in which projections
leave it. On a CPU one kernel does it all, sequence by sequence, and what a sequence needs stays in a core's cache.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from scaling.ops import _mamba_inner
from scaling.ops._mamba_layout import Sizes, distribute, lay_out, sizes_of, up
from scaling.ops._rows import CHUNKS, by_member, flat, signed, threads_of_torch
from scaling.ops._vectors import LANES
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
        return mamba_inners(xz, [xz.shape[1]], [parameters])
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

PARAMETERS = 7
"""How many of them a block has."""


def mamba_inners(
    xz: Float[Tensor, "batch time inputs"], lengths: Sequence[int], blocks: Sequence[Parameters]
) -> Float[Tensor, "batch time outputs"]:
    """Several blocks side by side, by the Numba kernels, on a CPU in single precision.

    Args:
        xz: for each block in turn what :func:`mamba_inner` is given; together twice as many as there are outputs.
        lengths: tokens after which each block begins anew, a divisor of ``time``.
        blocks: the other arguments for each.

    """
    assert xz.shape[-1] == 2 * sum(map(_channels, blocks))
    assert not any(xz.shape[1] % length for length in lengths)
    y: Tensor = _Fused.apply(xz, tuple(lengths), *itertools.chain(*blocks))[0]
    return y


def mamba_inners_ref(
    xz: Float[Tensor, "batch time inputs"], lengths: Sequence[int], blocks: Sequence[Parameters]
) -> Float[Tensor, "batch time outputs"]:
    """The same, block by block and sub-sequence by sub-sequence."""
    given = xz.split([2 * _channels(block) for block in blocks], dim=-1)
    outputs = []
    for part, length, block in zip(given, lengths, blocks, strict=True):
        cut = part.unflatten(1, (-1, length)).flatten(0, 1)
        outputs.append(mamba_inner_ref(cut, *block).unflatten(0, (len(xz), -1)).flatten(1, 2))
    return torch.cat(outputs, dim=-1)


class _Fused(torch.autograd.Function):
    """The result, and for the way back what was selected and the parameters as the kernels want them, block by block.

    Mapped over, the members of a population in one call.
    """

    @staticmethod
    @signed
    def forward(xz: Tensor, lengths: Sequence[int], *parameters: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.ops.scaling.mamba_inner(xz, lengths, parameters))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        xz, ctx.lengths, *parameters = inputs
        ctx.save_for_backward(xz, *parameters, *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        xz, *rest = ctx.saved_tensors
        count = PARAMETERS * len(ctx.lengths)
        d_xz, *d_parameters = torch.ops.scaling.mamba_inner_backward(dy, xz, ctx.lengths, rest[:count], rest[count:])
        return d_xz, None, *d_parameters

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *given: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        xz, lengths, *parameters = given
        xz, *parameters = by_member(info, (in_dims[0], *in_dims[2:]), (xz, *parameters))
        y, *kept = _Fused.apply(xz.flatten(0, 1), lengths, *parameters)
        found = y.unflatten(0, (info.batch_size, -1)), *(x.unflatten(0, (info.batch_size, -1)) for x in kept)
        return found, (0,) * len(found)


class _Block(NamedTuple):
    """One of several that lie side by side."""

    sizes: Sizes
    sequences: int
    arrays: list[np.ndarray]
    """The memory of its parameters, or of their gradients, with an axis of members in front."""


def _forward(xz: Tensor, lengths: Sequence[int], parameters: Parameters) -> list[Tensor]:
    blocks = _blocks(xz, lengths, parameters)
    y, given = xz.new_empty(*xz.shape[:2], blocks[0].sizes.row), flat(_widened(xz, parameters, 2))
    selected, constants = [], []
    for block in blocks:
        sizes, (own, mixing) = block.sizes, _laid_out(block)
        chosen = xz.new_empty(*xz.shape[:2], sizes.selected)
        workers = min(threads_of_torch(), block.sequences)
        _mamba_inner.forward(given, own, mixing, sizes, len(own), block.sequences, flat(y), flat(chosen), workers)
        selected.append(chosen)
        constants.append(torch.from_numpy(own))
    return [_narrowed(y, parameters, 1), *selected, *constants]


def _backward(
    dy: Tensor, xz: Tensor, lengths: Sequence[int], parameters: Parameters, kept: Sequence[Tensor]
) -> list[Tensor]:
    d_parameters = [torch.empty(parameter.shape) for parameter in parameters]
    blocks = _blocks(xz, lengths, d_parameters)
    d_xz = xz.new_empty(*xz.shape[:2], 2 * blocks[0].sizes.row)
    given = flat(_widened(dy, parameters, 1)), flat(_widened(xz, parameters, 2))
    for (sizes, sequences, arrays), chosen, own in zip(blocks, kept[: len(blocks)], kept[len(blocks) :], strict=True):
        constants, members = own.numpy(), len(own)
        sums = np.zeros((members, max(1, min(sequences // members, CHUNKS)), constants.shape[1]), np.float32)
        chunks = sums.reshape(-1, constants.shape[1])
        workers = min(threads_of_torch(), len(chunks))
        _mamba_inner.backward(*given, constants, flat(chosen), sizes, members, sequences, flat(d_xz), chunks, workers)
        distribute(sizes, sums, constants, *arrays)
    return [_narrowed(d_xz, parameters, 2), *d_parameters]


_LIBRARY = torch.library.Library("scaling", "FRAGMENT")
"""The kernels are operators, so that a profiler knows them by name."""
_LIBRARY.define("mamba_inner(Tensor xz, int[] lengths, Tensor[] parameters) -> Tensor[]")
_LIBRARY.impl("mamba_inner", _forward, "CPU")
_LIBRARY.define(
    "mamba_inner_backward(Tensor dy, Tensor xz, int[] lengths, Tensor[] parameters, Tensor[] kept) -> Tensor[]"
)
_LIBRARY.impl("mamba_inner_backward", _backward, "CPU")


def _channels(block: Parameters) -> int:
    """Of a block."""
    return block[0].shape[-2]


def _by_block(parameters: Parameters) -> Iterator[Parameters]:
    return (parameters[at : at + PARAMETERS] for at in range(0, len(parameters), PARAMETERS))


def _blocks(xz: Tensor, lengths: Sequence[int], parameters: Parameters) -> list[_Block]:
    """The blocks, their channels filled up to whole vectors.

    Where there are few sequences for the threads, each piece is one.
    """
    each = [_arrays(block) for block in _by_block(parameters)]
    channels = [up(arrays[-1].shape[-1], LANES) for arrays in each]
    blocks = []
    for at, (arrays, length) in enumerate(zip(each, lengths, strict=True)):
        time = length if len(xz) < CHUNKS * len(arrays[-1]) else xz.shape[1]
        sizes = _sizes(arrays, time, length, sum(channels), sum(channels[:at]))
        blocks.append(_Block(sizes, len(xz) * xz.shape[1] // time, arrays))
    return blocks


def _sizes(arrays: Sequence[np.ndarray], time: int, length: int, row: int, first: int) -> Sizes:
    conv_weight, _, _, dt_weight, A_log, D, _ = arrays
    return sizes_of(time, length, D.shape[-1], A_log.shape[-1], dt_weight.shape[-1], conv_weight.shape[-1], row, first)


def _laid_out(block: _Block) -> tuple[np.ndarray, np.ndarray]:
    """The parameters as the kernels want them, a row for each member; and W_x once more, turned."""
    (sizes, _, arrays), members = block, len(block.arrays[-1])
    constants = np.zeros((members, (sizes.dt_bias + 1) * sizes.channels), np.float32)
    mixing = np.zeros(members * sizes.channels * sizes.selected, np.float32)
    lay_out(sizes, *arrays, constants, mixing)
    return constants, mixing


def _arrays(block: Parameters) -> list[np.ndarray]:
    """Their memory, with an axis of members in front."""
    arrays = [x.detach().contiguous().numpy() for x in block]
    return arrays if arrays[-1].ndim > 1 else [x[None] for x in arrays]


def _parts(parameters: Parameters, each: int) -> list[int]:
    """Sizes of what lies side by side in the last axis, ``each`` times as many parts as blocks."""
    return [count for block in _by_block(parameters) for count in [_channels(block)] * each]


def _widened(x: Tensor, parameters: Parameters, each: int) -> Tensor:
    """The tensor, contiguous, each part of its last axis followed by zeros up to whole vectors."""
    counts = _parts(parameters, each)
    if all(count % LANES == 0 for count in counts):
        return x.contiguous()
    return torch.cat([functional.pad(part, (0, -part.shape[-1] % LANES)) for part in x.split(counts, dim=-1)], dim=-1)


def _narrowed(x: Tensor, parameters: Parameters, each: int) -> Tensor:
    """Without those zeros."""
    counts = _parts(parameters, each)
    if x.shape[-1] == sum(counts):
        return x
    wide = x.split([up(count, LANES) for count in counts], dim=-1)
    return torch.cat([part[..., :count] for part, count in zip(wide, counts, strict=True)], dim=-1)
