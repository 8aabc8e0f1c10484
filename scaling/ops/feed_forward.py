"""The network at the end of a layer (Vaswani et al. 2017, Equation 2), with dropout after it.

    y = dropout( act(x W1^T + b1) W2^T + b2 )

On a CPU the products are PyTorch's, and what is between and after them is done where they leave their results: the
activation and its slope are found together, since they share an exponential, and nothing else is kept.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from scaling.ops import _feed_forward
from scaling.ops._rows import CHUNKS, by_member, flat, signed, threads_of_torch
from scaling.ops.dropout import Draw, dropout_ref

ACTIVATIONS = ("gelu", "relu")


def feed_forward(
    x: Float[Tensor, "*batch width"],
    weight: Float[Tensor, "inner width"],
    bias: Float[Tensor, " inner"],
    out_weight: Float[Tensor, "width inner"],
    out_bias: Float[Tensor, " width"],
    activation: str,
    draw: Draw,
) -> Float[Tensor, "*batch width"]:
    """What the layer adds to the residual stream; on a CPU in single precision.

    ``activation`` is one of :data:`ACTIVATIONS`, gelu the exact one; ``draw`` says which entries are dropped.
    """
    rows = x.reshape(-1, x.shape[-1])
    y: Tensor = _Fused.apply(rows, weight, bias, out_weight, out_bias, activation, draw)[0]
    return y.view(*x.shape[:-1], out_weight.shape[0])


def feed_forward_ref(
    x: Float[Tensor, "*batch width"],
    weight: Float[Tensor, "inner width"],
    bias: Float[Tensor, " inner"],
    out_weight: Float[Tensor, "width inner"],
    out_bias: Float[Tensor, " width"],
    activation: str,
    draw: Draw,
) -> Float[Tensor, "*batch width"]:
    """The same as the equation says it."""
    hidden = functional.linear(x, weight, bias)
    active = functional.gelu(hidden) if activation == "gelu" else functional.relu(hidden)
    return dropout_ref(functional.linear(active, out_weight, out_bias), draw)


class _Fused(torch.autograd.Function):
    """The result, and for the way back what was activated and its slope; mapped over, all members in one call."""

    @staticmethod
    @signed
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor, out_bias: Tensor, activation: str, draw: Draw
    ) -> tuple[Tensor, Tensor, Tensor]:
        slope = x @ weight.mT
        active = torch.ops.scaling.activate(slope, bias, activation == "relu")
        y = active @ out_weight.mT
        torch.ops.scaling.finish(y, out_bias, draw.p, draw.seeds, draw.begin)
        return y, active, slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, _, out_weight, _, _, ctx.draw = inputs
        ctx.save_for_backward(x, weight, out_weight, *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        x, weight, out_weight, active, slope = ctx.saved_tensors
        d, d_out_bias = torch.ops.scaling.finish_back(dy, ctx.draw.p, ctx.draw.seeds, ctx.draw.begin)
        d_out_weight = d.mT @ active
        d = d @ out_weight
        d_bias = torch.ops.scaling.activate_back(d, slope)
        return d @ weight, d.mT @ x, d_bias, d_out_weight, d_out_bias, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *given: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        activation, draw = given[5:]
        return _Fused.apply(*by_member(info, in_dims[:5], given[:5]), activation, draw.settled()), (0, 0, 0)


def _activate(h: Tensor, bias: Tensor, is_relu: bool) -> Tensor:
    active, rows = torch.empty_like(h), h.shape[:-1].numel()
    given = flat(h), flat(bias.contiguous()), _members(h), h.shape[-1], is_relu, flat(active)
    if rows:
        _feed_forward.activate(*given, min(threads_of_torch(), rows))
    return active


def _activate_back(da: Tensor, slope: Tensor) -> Tensor:
    sums = _sums(da)
    workers = min(threads_of_torch(), len(sums))
    _feed_forward.activate_back(flat(da), flat(slope), _members(da), da.shape[-1], sums.reshape(-1), workers)
    return _added(sums, da)


def _finish(y: Tensor, bias: Tensor, p: float, seeds: Sequence[int], begin: int) -> None:
    drawn, rows = Draw(p, tuple(seeds), begin).kernel(_members(y)), y.shape[:-1].numel()
    if rows:
        workers = min(threads_of_torch(), rows)
        _feed_forward.finish(flat(y), flat(bias.contiguous()), *drawn, _members(y), y.shape[-1], workers)


def _finish_back(dy: Tensor, p: float, seeds: Sequence[int], begin: int) -> tuple[Tensor, Tensor]:
    dy = dy.contiguous()
    drawn, d, sums = Draw(p, tuple(seeds), begin).kernel(_members(dy)), torch.empty_like(dy), _sums(dy)
    workers = min(threads_of_torch(), len(sums))
    _feed_forward.finish_back(flat(dy), *drawn, _members(dy), dy.shape[-1], flat(d), sums.reshape(-1), workers)
    return d, _added(sums, dy)


def _members(rows: Tensor) -> int:
    return len(rows) if rows.ndim == 3 else 1


def _sums(rows: Tensor) -> np.ndarray:
    """Places for sums over the rows of each member, in chunks whose number does not depend on threads."""
    each = rows.shape[-2]
    return np.zeros((_members(rows) * max(1, min(each, CHUNKS)), rows.shape[-1]), np.float32)


def _added(sums: np.ndarray, rows: Tensor) -> Tensor:
    added = torch.from_numpy(sums.reshape(_members(rows), -1, sums.shape[-1]).sum(axis=1))
    return added if rows.ndim == 3 else added[0]


_LIBRARY = torch.library.Library("scaling", "FRAGMENT")
"""The kernels are operators, so that a profiler knows them by name."""
_LIBRARY.define("activate(Tensor(a!) h, Tensor bias, bool is_relu) -> Tensor")
_LIBRARY.impl("activate", _activate, "CPU")
_LIBRARY.define("activate_back(Tensor(a!) da, Tensor slope) -> Tensor")
_LIBRARY.impl("activate_back", _activate_back, "CPU")
_LIBRARY.define("finish(Tensor(a!) y, Tensor bias, float p, int[] seeds, int begin) -> ()")
_LIBRARY.impl("finish", _finish, "CPU")
_LIBRARY.define("finish_back(Tensor dy, float p, int[] seeds, int begin) -> (Tensor, Tensor)")
_LIBRARY.impl("finish_back", _finish_back, "CPU")
