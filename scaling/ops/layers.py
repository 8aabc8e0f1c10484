"""Layers of a sequence model: Mamba blocks (Gu & Dao 2023, Figure 3), then a network (Vaswani et al. 2017, Equation 2).

    x <- x + sum_i Mamba_i(norm(x));   x <- x + dropout( act(norm(x) W1^T + b1) W2^T + b2 )

On a CPU one kernel takes a batch through all of them, a sequence at a time, so that what is inside a block or a network
stays in a core's cache. Norm, activation and what a scan goes through are found again on the way back.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from scaling.ops import _feed_forward, _layers, _mamba_layout
from scaling.ops._jobs import share
from scaling.ops._layers import Given, Layout, layout_of
from scaling.ops._mamba_layout import Counts
from scaling.ops._rows import by_member, signed, threads_of_torch
from scaling.ops.dropout import Draw, dropout_ref
from scaling.ops.mamba_inner import mamba_inner_ref

ACTIVATIONS = ("gelu", "relu")

BLOCK, NORM, NETWORK = _mamba_layout.PARAMETERS, _layers.NORM, _feed_forward.PARAMETERS
"""How many parameters a block, a norm and a network have."""


@dataclass(frozen=True)
class Form:
    """What layers have in common.

    The parameters of each: of every block W_in (twice_channel, width), what :func:`mamba_inner` is given beside its
    input, in its order, and W_out (width, channel); weight and bias of the norm before them; W1 (inner, width), b1, W2
    (width, inner) and b2 of the network; weight and bias of the norm before it.
    """

    lengths: tuple[int, ...] = ()
    """Of each block, the tokens after which it begins anew, a divisor of their number."""
    normed: bool = True
    """Whether there is a norm before the blocks and the residual around them, as there always is with the network."""
    activation: str | None = None
    """The network's, one of :data:`ACTIVATIONS`, gelu the exact one; nothing where there is no network."""
    eps: float = 1e-5
    """Of norms."""

    @property
    def count(self) -> int:
        """Parameters of a layer."""
        blocks = BLOCK * len(self.lengths) + NORM * (self.normed and bool(self.lengths))
        return blocks + (0 if self.activation is None else NETWORK + NORM)


def layers(
    x: Float[Tensor, "batch time width"], form: Form, draws: Sequence[Draw], parameters: Sequence[Tensor]
) -> Float[Tensor, "batch time width"]:
    """What comes out of the last layer, by the Numba kernels: on a CPU in single precision.

    Args:
        x: what the first is given.
        form: of all layers.
        draws: which entries are dropped after the network of each; all of one probability and first number.
        parameters: of one layer after another, in single precision, with the same shapes in each.

    Raises:
        ValueError: draws or shapes differ from layer to layer, or something has another precision.
        NotImplementedError: something is not on the CPU.

    """
    assert form.normed or (len(draws) == 1 and form.activation is None)
    if len({(draw.p, draw.begin) for draw in draws}) > 1:
        raise ValueError("layers of one call drop entries with one probability")
    y: Tensor = _Fused.apply(_Call(form, tuple(draws), _goes_back((x, *parameters))), x, *parameters)[0]
    return y


def _goes_back(given: Sequence[Tensor]) -> bool:
    """Whether there will be a way back."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)


def layers_ref(
    x: Float[Tensor, "batch time width"], form: Form, draws: Sequence[Draw], parameters: Sequence[Tensor]
) -> Float[Tensor, "batch time width"]:
    """The same, layer by layer, block by block and sub-sequence by sub-sequence, as the equations say it."""
    given = iter(parameters)

    def some(count: int) -> list[Tensor]:
        return list(itertools.islice(given, count))

    for draw in draws:
        blocks = [some(BLOCK) for _ in form.lengths]
        u = _normalised(x, form, some(NORM)) if blocks and form.normed else x
        mixed = [_block_ref(u, length, *block) for length, block in zip(form.lengths, blocks, strict=True)]
        x = sum(mixed, x if form.normed else torch.zeros_like(x))
        if form.activation is not None:
            (weight, bias, out_weight, out_bias), norm = some(NETWORK), some(NORM)
            hidden = functional.linear(_normalised(x, form, norm), weight, bias)
            active = functional.gelu(hidden) if form.activation == "gelu" else functional.relu(hidden)
            x = x + dropout_ref(functional.linear(active, out_weight, out_bias), draw)
    return x


def _normalised(x: Tensor, form: Form, norm: Sequence[Tensor]) -> Tensor:
    weight, bias = norm
    return functional.layer_norm(x, x.shape[-1:], weight, bias, form.eps)


def _block_ref(u: Tensor, length: int, in_weight: Tensor, *rest: Tensor) -> Tensor:
    *inner, out_weight = rest
    cut = functional.linear(u, in_weight).unflatten(1, (-1, length)).flatten(0, 1)
    return functional.linear(mamba_inner_ref(cut, *inner), out_weight).reshape(u.shape)


@dataclass(frozen=True)
class _Call:
    """What is no tensor."""

    form: Form
    draws: tuple[Draw, ...]
    keeps: bool
    """Whether to keep what the way back needs."""
    members: int = 1
    mapped: bool = False
    """Whether parameters have an axis of members in front, and sequences of each member follow those of another."""

    def numbers(self) -> tuple[Any, ...]:
        """The same as an operator takes it."""
        form, (first, *_) = self.form, self.draws
        seeds = [seed for draw in self.draws for seed in draw.seeds]
        written = form.lengths, form.normed, form.activation, form.eps
        return (*written, first.p, seeds, first.begin, len(self.draws), self.keeps, self.members, self.mapped)


def _call_of(
    lengths: Sequence[int],
    normed: bool,
    activation: str | None,
    eps: float,
    p: float,
    seeds: Sequence[int],
    begin: int,
    depth: int,
    *rest: Any,
) -> _Call:
    each = len(seeds) // depth
    draws = tuple(Draw(p, tuple(seeds[at * each : (at + 1) * each]), begin) for at in range(depth))
    return _Call(Form(tuple(lengths), normed, activation, eps), draws, *rest)


class _Fused(torch.autograd.Function):
    """The result, and what is kept for the way back; mapped over, the members of a population in one call."""

    @staticmethod
    @signed
    def forward(call: _Call, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        y, kept = torch.ops.scaling.layers(x, parameters, *call.numbers())
        return y, kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.call, x, *parameters = inputs
        ctx.save_for_backward(x, output[1], *parameters)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        x, kept, *parameters = ctx.saved_tensors
        return None, *torch.ops.scaling.layers_backward(dy, x, kept, parameters, *ctx.call.numbers())

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], call: _Call, *given: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, None]]:
        x, *parameters = by_member(info, in_dims[1:], given)
        draws = tuple(draw.settled() for draw in call.draws)
        call = replace(call, draws=draws, keeps=_goes_back((x, *parameters)), members=info.batch_size, mapped=True)
        y, kept = _Fused.apply(call, x.flatten(0, 1), *parameters)
        return (y.unflatten(0, (info.batch_size, -1)), kept), (0, None)


def _forward(x: Tensor, parameters: Sequence[Tensor], *numbers: Any) -> tuple[Tensor, Tensor]:
    call = _call_of(*numbers)
    x, parameters = x.contiguous(), [parameter.contiguous() for parameter in parameters]
    layout = _layout(call, x.shape, tuple(parameter.shape for parameter in parameters))
    if unlike := {given.dtype for given in (x, *parameters)} - {torch.float32}:
        raise ValueError(f"layers are computed in single precision, not in {unlike.pop()}")
    y, kept = torch.empty_like(x), x.new_empty(layout.kept)
    plan, threads = layout.plan, threads_of_torch()
    given, *_needed = _given(call, layout, parameters, x=x, kept=kept, y=y)
    share(_layers.lay_out, given, plan.layers * plan.panels * plan.members, threads)
    share(_layers.forward, given, plan.members * plan.chunks, threads)
    return y, kept


def _backward(dy: Tensor, x: Tensor, kept: Tensor, parameters: Sequence[Tensor], *numbers: Any) -> list[Tensor]:
    if not len(x):
        return [torch.zeros_like(given) for given in (x, *parameters)]
    call, shapes = _call_of(*numbers), tuple(parameter.shape for parameter in parameters)
    layout, dy, x = _layout(call, x.shape, shapes), dy.contiguous(), x.contiguous()
    slopes = [torch.empty_like(parameter, memory_format=torch.contiguous_format) for parameter in parameters]
    plan, threads = layout.plan, threads_of_torch()
    middle, dx, sums = (
        torch.empty_like(x),
        torch.empty_like(x),
        x.new_empty(plan.members * plan.chunks, plan.summed),
    )
    given, *_needed = _given(call, layout, slopes, x=x, kept=kept, y=dy, middle=middle, dx=dx, sums=sums)
    for layer in reversed(range(plan.layers)):
        given[-1] = layer
        share(_layers.backward, given, plan.members * plan.chunks, threads)
        share(_layers.distribute, given, plan.panels * plan.members, threads)
    return [dx, *slopes]


_LIBRARY = torch.library.Library("scaling", "FRAGMENT")
"""The kernels are operators, so that whoever watches PyTorch's, such as a profiler, sees them."""
_NUMBERS = (
    "int[] lengths, bool normed, str? activation, float eps, float p, int[] seeds, int begin, int depth, bool keeps, "
    "int members, bool mapped"
)
_LIBRARY.define(f"layers(Tensor x, Tensor[] parameters, {_NUMBERS}) -> (Tensor, Tensor)")
_LIBRARY.impl("layers", _forward, "CPU")
_LIBRARY.define(f"layers_backward(Tensor dy, Tensor x, Tensor kept, Tensor[] parameters, {_NUMBERS}) -> Tensor[]")
_LIBRARY.impl("layers_backward", _backward, "CPU")


def _layout(call: _Call, shape: torch.Size, shapes: tuple[torch.Size, ...]) -> Layout:
    return _checked_layout(call.form, len(call.draws), call.members, call.mapped, call.keeps, shape, shapes)


@functools.lru_cache(maxsize=256)
def _checked_layout(
    form: Form,
    depth: int,
    members: int,
    mapped: bool,
    keeps: bool,
    shape: torch.Size,
    shapes: tuple[torch.Size, ...],
) -> Layout:
    """The layout for an input and for parameters of these shapes, which the kernels do not check.

    Raises:
        ValueError: no layers have such parameters.

    """
    if len(shape) != 3 or len(shapes) != form.count * depth:
        raise ValueError(f"{len(shapes)} parameters and an input of {tuple(shape)} do not make {depth} layers")
    (batch, time, width), blocks = shape, []
    if any(time % length for length in form.lengths):
        raise ValueError(f"blocks cannot begin anew after {form.lengths} tokens of {time}")
    own = [tuple(shape[mapped:]) for shape in shapes[: form.count]]
    expected: list[tuple[int, ...]] = []
    for at, length in enumerate(form.lengths):
        _, (channels, _, taps), _, _, (_, rank), (_, states), *_ = own[at * BLOCK : (at + 1) * BLOCK]
        blocks.append((length, Counts(width, channels, states, rank, taps)))
        expected += [(2 * channels, width), (channels, 1, taps), (channels,), (rank + 2 * states, channels)]
        expected += [(channels, rank), (channels, states), (channels,), (channels,), (width, channels)]
    expected += [(width,)] * NORM * (form.normed and bool(blocks))
    inner = 0 if form.activation is None else own[len(expected)][0]
    if form.activation is not None:
        expected += [(inner, width), (inner,), (width, inner), (width,), *[(width,)] * NORM]
    if [tuple(shape[mapped:]) for shape in shapes] != expected * depth:
        raise ValueError(f"{depth} layers of width {width} do not have parameters of the shapes {own} each")
    if form.activation is None and depth > 1 and len(blocks) > 1:
        keeps = True  # since a second block needs what the first was given
    return layout_of(depth, members, batch // members, time, width, form.normed, inner, keeps, tuple(blocks))


def _given(call: _Call, layout: Layout, parameters: Sequence[Tensor], **memory: Tensor) -> tuple[np.ndarray, ...]:
    """What jobs are given, and what must stay in memory for it."""
    first, members = call.draws[0], layout.plan.members
    seeds = np.array([draw.each(members) for draw in call.draws], np.uint64)
    numbers = np.array([call.form.eps, first.scale], np.float32)
    addresses = np.array([parameter.data_ptr() for parameter in parameters], np.int64)
    plan, network, sizes, parts = layout.addresses
    given = Given(
        plan=plan,
        network=network,
        sizes=sizes,
        parts=parts,
        total=layout.kept,
        parameters=addresses.ctypes.data,
        each=call.form.count,
        eps=numbers.ctypes.data,
        threshold=first.threshold,
        begin=first.begin,
        seeds=seeds.ctypes.data,
        is_relu=call.form.activation == "relu",
        **{name: tensor.data_ptr() for name, tensor in memory.items()},
    )
    return np.array(given, np.int64), addresses, numbers, seeds
