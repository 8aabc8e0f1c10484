"""Whole Mamba blocks on a CPU (Gu & Dao 2023, Figure 3): the sum of several that are given the same.

    xz = W_in u;   y = mamba_inner(xz);   out = W_out y        or, with a norm, out = u + W_out y and xz = W_in norm(u)

One kernel does it all, sequence by sequence, so that what a sequence needs stays in a core's cache: its projections are
too small for a product of their own to be worth the way through memory.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from scaling.ops import _mamba_block
from scaling.ops._mamba_layout import Sizes, distribute, lay_out, sizes_of
from scaling.ops._rows import CHUNKS, by_member, flat, norm_arrays, signed, threads_of_torch
from scaling.ops._vectors import LANES, F
from scaling.ops.mamba_inner import mamba_inner_ref
from scaling.ops.norm import Norm

Parameters = Sequence[Tensor]
"""W_in (twice_channel, width), what :func:`mamba_inner` is given beside its input, in its order, and W_out (width,
channel).

Each may have an axis of members in front; the sequences of each member then follow those of another.
"""

PARAMETERS = 9
"""How many of them a block has."""


def mamba_blocks(
    u: Float[Tensor, "batch time width"],
    lengths: Sequence[int],
    blocks: Sequence[Parameters],
    norm: Norm | None = None,
) -> Float[Tensor, "batch time width"]:
    """The sum of several blocks, by the Numba kernels, on a CPU in single precision.

    Args:
        u: what each of them is given.
        lengths: tokens after which each block begins anew, a divisor of ``time``.
        blocks: the parameters of each.
        norm: if any, blocks are given what it makes of ``u``, to which their sum is added.

    """
    assert not any(u.shape[1] % length for length in lengths)
    eps, before = (0.0, ()) if norm is None else (norm.eps, (norm.weight, norm.bias))
    y: Tensor = _Fused.apply(u, tuple(lengths), eps, *itertools.chain(*blocks), *before)[0]
    return y


def mamba_blocks_ref(
    u: Float[Tensor, "batch time width"],
    lengths: Sequence[int],
    blocks: Sequence[Parameters],
    norm: Norm | None = None,
) -> Float[Tensor, "batch time width"]:
    """The same, block by block and sub-sequence by sub-sequence."""
    if norm is not None:
        return u + mamba_blocks_ref(norm.of(u), lengths, blocks)
    total = torch.zeros_like(u)
    for length, (in_weight, *inner, out_weight) in zip(lengths, blocks, strict=True):
        cut = functional.linear(u, in_weight).unflatten(1, (-1, length)).flatten(0, 1)
        total = total + functional.linear(mamba_inner_ref(cut, *inner), out_weight).reshape(u.shape)
    return total


class _Fused(torch.autograd.Function):
    """The result, and for the way back xz, what was selected and parameters as the kernels want them, by block.

    Mapped over, the members of a population in one call.
    """

    @staticmethod
    @signed
    def forward(u: Tensor, lengths: Sequence[int], eps: float, *parameters: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.ops.scaling.mamba_block(u, lengths, eps, parameters))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        u, ctx.lengths, ctx.eps, *parameters = inputs
        ctx.count = len(parameters)
        ctx.save_for_backward(u, *parameters, *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        u, *rest = ctx.saved_tensors
        given = ctx.lengths, ctx.eps, rest[: ctx.count], rest[ctx.count :]
        d_u, *d_parameters = torch.ops.scaling.mamba_block_backward(dy, u, *given)
        return d_u, None, None, *d_parameters

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *given: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        u, lengths, eps, *parameters = given
        u, *parameters = by_member(info, (in_dims[0], *in_dims[3:]), (u, *parameters))
        y, *kept = _Fused.apply(u.flatten(0, 1), lengths, eps, *parameters)
        found = y.unflatten(0, (info.batch_size, -1)), *(x.unflatten(0, (info.batch_size, -1)) for x in kept)
        return found, (0,) * len(found)


KEPT = 4
"""Tensors of a block for the way back."""


def _forward(u: Tensor, lengths: Sequence[int], eps: float, parameters: Parameters) -> list[Tensor]:
    u, norm = u.contiguous(), norm_arrays(parameters[PARAMETERS * len(lengths) :])
    y, kept = torch.empty_like(u), []
    base = u if norm[0].size else y.zero_()
    for sizes, sequences, arrays in _blocks(u, lengths, parameters, norm):
        members = len(arrays[-1])
        constants = np.zeros((members, sizes.numbers), np.float32)
        turned = np.empty((members, sizes.weights * sizes.channels), np.float32)
        lay_out(sizes, arrays, *norm, constants, turned)
        xz = u.new_empty(sequences, 2 * sizes.channels // LANES * sizes.column)
        selected = u.new_empty(sequences, sizes.time * sizes.selected)
        known, found = (constants, turned, sizes, members, sequences), (flat(xz), flat(selected), flat(base), flat(y))
        _mamba_block.forward(flat(u), F(eps), *known, *found, min(threads_of_torch(), sequences))
        kept += [xz, selected, torch.from_numpy(constants), torch.from_numpy(turned)]
        base = y
    return [y, *kept]


def _backward(
    dy: Tensor, u: Tensor, lengths: Sequence[int], eps: float, parameters: Parameters, kept: Sequence[Tensor]
) -> list[Tensor]:
    own = PARAMETERS * len(lengths)
    d_parameters = [parameter.new_empty(parameter.shape) for parameter in parameters[:own]]
    d_parameters += [parameter.new_zeros(parameter.shape) for parameter in parameters[own:]]
    norm, dy, u = norm_arrays(d_parameters[own:]), dy.contiguous(), u.contiguous()
    d_u = torch.empty_like(u)
    base = dy if norm[0].size else d_u.zero_()
    for at, (sizes, sequences, arrays) in enumerate(_blocks(u, lengths, d_parameters, norm)):
        xz, selected, constants, turned = (x.numpy() for x in kept[at * KEPT : (at + 1) * KEPT])
        members = len(constants)
        sums = np.zeros((members, max(1, min(sequences // members, CHUNKS)), sizes.numbers), np.float32)
        known = constants, turned, xz.reshape(-1), selected.reshape(-1), sizes, members, sequences
        chunks = sums.reshape(-1, sizes.numbers)
        workers = min(threads_of_torch(), len(chunks))
        _mamba_block.backward(flat(dy), flat(u), F(eps), *known, flat(base), flat(d_u), chunks, workers)
        distribute(sizes, sums, constants, arrays, *norm)
        base = d_u
    return [d_u, *d_parameters]


_LIBRARY = torch.library.Library("scaling", "FRAGMENT")
"""The kernels are operators, so that a profiler knows them by name."""
_LIBRARY.define("mamba_block(Tensor u, int[] lengths, float eps, Tensor[] parameters) -> Tensor[]")
_LIBRARY.impl("mamba_block", _forward, "CPU")
_LIBRARY.define(
    "mamba_block_backward(Tensor dy, Tensor u, int[] lengths, float eps, Tensor[] parameters, Tensor[] kept)"
    " -> Tensor[]"
)
_LIBRARY.impl("mamba_block_backward", _backward, "CPU")


def _blocks(
    u: Tensor, lengths: Sequence[int], parameters: Parameters, norm: Sequence[np.ndarray]
) -> Iterator[tuple[Sizes, int, tuple[np.ndarray, ...]]]:
    """Of each block sizes, sequences, and the memory of parameters or gradients, with an axis of members in front.

    Where there are few sequences for the threads, each piece is one.
    """
    for at, length in enumerate(lengths):
        arrays = _arrays(parameters[at * PARAMETERS : (at + 1) * PARAMETERS])
        time = length if len(u) < CHUNKS * len(arrays[-1]) else u.shape[1]
        yield _sizes(arrays, time, length, norm), len(u) * u.shape[1] // time, arrays


def _sizes(arrays: Sequence[np.ndarray], time: int, length: int, norm: Sequence[np.ndarray]) -> Sizes:
    _, conv_weight, _, _, dt_weight, A_log, D, _, out_weight = arrays
    counts = D.shape[-1], A_log.shape[-1], dt_weight.shape[-1], conv_weight.shape[-1]
    return sizes_of(time, length, out_weight.shape[-2], *counts, norm[0].size > 0)


def _arrays(block: Parameters) -> tuple[np.ndarray, ...]:
    arrays = tuple(x.detach().contiguous().numpy() for x in block)
    return arrays if arrays[-1].ndim > 2 else tuple(x[None] for x in arrays)
