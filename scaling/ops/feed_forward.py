"""The network at the end of a layer (Vaswani et al. 2017, Equation 2), with dropout after it.

    y = dropout( act(x W1^T + b1) W2^T + b2 )

On a CPU one kernel does it all, some tokens at a time, so that what is inside the network stays in a core's cache. The
activation and its slope, which share an exponential, are found together, and again on the way back.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from scaling.ops import _feed_forward
from scaling.ops._feed_forward import COLUMN, Sizes, sizes_of
from scaling.ops._rows import CHUNKS, by_member, flat, in_memory, norm_arrays, signed, threads_of_torch
from scaling.ops._vectors import LANES, F
from scaling.ops.dropout import Draw, dropout_ref
from scaling.ops.norm import Norm

ACTIVATIONS = ("gelu", "relu")


def feed_forward(
    x: Float[Tensor, "*batch width"],
    weight: Float[Tensor, "inner width"],
    bias: Float[Tensor, " inner"],
    out_weight: Float[Tensor, "width inner"],
    out_bias: Float[Tensor, " width"],
    activation: str,
    draw: Draw,
    norm: Norm | None = None,
) -> Float[Tensor, "*batch width"]:
    """What the layer adds to the residual stream; on a CPU in single precision.

    ``activation`` is one of :data:`ACTIVATIONS`, gelu the exact one; ``draw`` says which entries are dropped. With a
    norm, the network is given what it makes of ``x``, to which its result is added.
    """
    rows, parameters = x.reshape(-1, x.shape[-1]), (weight, bias, out_weight, out_bias)
    eps, before = (0.0, ()) if norm is None else (norm.eps, (norm.weight, norm.bias))
    y: Tensor = _Fused.apply(activation, draw, eps, rows, *parameters, *before)[0]
    return y.view(*x.shape[:-1], out_weight.shape[0])


def feed_forward_ref(
    x: Float[Tensor, "*batch width"],
    weight: Float[Tensor, "inner width"],
    bias: Float[Tensor, " inner"],
    out_weight: Float[Tensor, "width inner"],
    out_bias: Float[Tensor, " width"],
    activation: str,
    draw: Draw,
    norm: Norm | None = None,
) -> Float[Tensor, "*batch width"]:
    """The same as the equation says it."""
    if norm is not None:
        parameters = weight, bias, out_weight, out_bias
        return x + feed_forward_ref(norm.of(x), *parameters, activation, draw)
    hidden = functional.linear(x, weight, bias)
    active = functional.gelu(hidden) if activation == "gelu" else functional.relu(hidden)
    return dropout_ref(functional.linear(active, out_weight, out_bias), draw)


class _Fused(torch.autograd.Function):
    """The result, and for the way back what was to be activated and the parameters as the kernels want them.

    Mapped over, all members in one call.
    """

    @staticmethod
    @signed
    def forward(activation: str, draw: Draw, eps: float, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        chosen = activation == "relu", draw.p, draw.seeds, draw.begin, eps
        return tuple(torch.ops.scaling.feed_forward(x, parameters, *chosen))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        activation, draw, eps, *given = inputs
        ctx.chosen, ctx.count = (activation == "relu", draw.p, draw.seeds, draw.begin, eps), len(given)
        ctx.save_for_backward(*given, *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        x, *rest = ctx.saved_tensors
        known = rest[: ctx.count - 1], rest[ctx.count - 1 :]
        return None, None, None, *torch.ops.scaling.feed_forward_backward(dy, x, *known, *ctx.chosen)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *given: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        activation, draw, eps = given[:3]
        found = _Fused.apply(activation, draw.settled(), eps, *by_member(info, in_dims[3:], given[3:]))
        return found, (0,) * len(found)


def _forward(
    x: Tensor, parameters: Sequence[Tensor], is_relu: bool, p: float, seeds: Sequence[int], begin: int, eps: float
) -> list[Tensor]:
    x, (weight, bias, out_weight, out_bias) = x.contiguous(), _arrays(parameters)
    norm = norm_arrays(parameters[4:])
    sizes, y = _sizes(x, bias, norm), torch.empty_like(x)
    constants = np.zeros((sizes.members, sizes.numbers), np.float32)
    turned = np.empty((sizes.members, sizes.bias * sizes.inner), np.float32)
    _feed_forward.lay_out(sizes, weight, bias, out_weight, *norm, constants, turned)
    hidden = x.new_empty(sizes.members, sizes.blocks * sizes.inner // LANES * COLUMN)
    if workers := min(threads_of_torch(), sizes.members * sizes.blocks):
        known, base = (constants, turned, out_bias, sizes, is_relu), x if parameters[4:] else y.zero_()
        drawn = Draw(p, tuple(seeds), begin).kernel(sizes.members)
        _feed_forward.forward(flat(x), F(eps), *known, *drawn, flat(hidden), flat(base), flat(y), workers)
    return [y, hidden, torch.from_numpy(constants), torch.from_numpy(turned)]


def _backward(
    dy: Tensor,
    x: Tensor,
    parameters: Sequence[Tensor],
    kept: Sequence[Tensor],
    is_relu: bool,
    p: float,
    seeds: Sequence[int],
    begin: int,
    eps: float,
) -> list[Tensor]:
    d_parameters = [parameter.new_empty(parameter.shape) for parameter in parameters]
    weight, bias, out_weight, out_bias = _arrays(d_parameters)
    norm, (hidden, constants, turned) = norm_arrays(d_parameters[4:]), (each.numpy() for each in kept)
    dy, x, dx, sizes = dy.contiguous(), x.contiguous(), torch.empty_like(x), _sizes(x, bias, norm)
    sums = np.zeros((sizes.members, max(1, min(sizes.blocks, CHUNKS)), sizes.numbers), np.float32)
    chunks, bias_sums = sums.reshape(-1, sizes.numbers), np.zeros((*sums.shape[:2], sizes.width), np.float32)
    known = F(eps), constants, turned, sizes, is_relu, *Draw(p, tuple(seeds), begin).kernel(sizes.members)
    base, found = dy if parameters[4:] else dx.zero_(), (flat(dx), chunks, bias_sums.reshape(len(chunks), -1))
    workers = min(threads_of_torch(), len(chunks))
    _feed_forward.backward(flat(dy), flat(x), *known, hidden.reshape(-1), flat(base), *found, workers)
    _feed_forward.distribute(sizes, sums, weight, bias, out_weight, *norm)
    out_bias[:] = bias_sums.sum(axis=1)
    return [dx, *d_parameters]


def _sizes(x: Tensor, bias: np.ndarray, norm: Sequence[np.ndarray]) -> Sizes:
    return sizes_of(x.shape[-1], bias.shape[-1], len(bias), x.shape[-2], norm[0].size > 0)


def _arrays(parameters: Sequence[Tensor]) -> list[np.ndarray]:
    """The memory of the two weights, each followed by its bias, with an axis of members in front."""
    return [in_memory(each, ndim) for each, ndim in zip(parameters[:4], (2, 1, 2, 1), strict=True)]


_LIBRARY = torch.library.Library("scaling", "FRAGMENT")
"""The kernels are operators, so that a profiler knows them by name."""
_CHOSEN = "bool is_relu, float p, int[] seeds, int begin, float eps"
_LIBRARY.define(f"feed_forward(Tensor x, Tensor[] parameters, {_CHOSEN}) -> Tensor[]")
_LIBRARY.impl("feed_forward", _forward, "CPU")
_LIBRARY.define(
    f"feed_forward_backward(Tensor dy, Tensor x, Tensor[] parameters, Tensor[] kept, {_CHOSEN}) -> Tensor[]"
)
_LIBRARY.impl("feed_forward_backward", _backward, "CPU")
