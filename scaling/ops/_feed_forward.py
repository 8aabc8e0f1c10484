"""The network at the end of a layer inside Numba kernels, some tokens at a time.

What is inside the network lies as columns (:mod:`scaling.ops._products`) in a core's cache. Arrays are flat.
``constants``, here a member's ``own``, hold W1 and W2, both as rows of what is inside, b1, the norm and b2; ``other``
holds the weights again, as columns.
"""

import functools
from typing import NamedTuple

import numpy as np

from scaling.ops._elementary import exp
from scaling.ops._jit import jit
from scaling.ops._mamba_layout import up
from scaling.ops._masks import CHUNK, factors
from scaling.ops._norm import normalise, normalise_back
from scaling.ops._products import contract, expand, give, outer, take, turn
from scaling.ops._vectors import (
    GROUP,
    LANES,
    LINE,
    F,
    above_zero,
    at_least,
    load,
    load_tile,
    of_member,
    repeated,
    scratch,
    signed,
    store,
)

TOKENS = 64
"""That are dealt with at a time."""

COLUMN = TOKENS * LANES + LINE


class Draws(NamedTuple):
    """What decides masks, but for a seed, as :func:`scaling.ops._masks.factors` wants it."""

    threshold: np.uint32
    scale: np.float32
    begin: int


PARAMETERS = 4
"""Of a network, in this order: W1, b1, W2, b2."""


class Sizes(NamedTuple):
    """Numbers of a network, and the first row of each parameter among its constants and the sums of their gradients."""

    width: int
    outputs: int
    """``width`` to a multiple of ``LANES``; W1 begins at row 0, W2 at this one."""
    row: int
    """Numbers from one token's input or output to the next."""
    channels: int
    """Inside."""
    inner: int
    """The same to a multiple of ``LANES``."""
    bias: int
    panel: int
    """Numbers from one vector of channels of all rows to the next."""
    norm: int
    """Where, behind all rows, weight and bias of the norm begin (:mod:`scaling.ops._norm`)."""
    added: int
    """Where b2 begins."""
    numbers: int
    """Of constants."""


@functools.cache
def sizes_of(width: int, channels: int) -> Sizes:
    """The sizes for a network of any numbers."""
    outputs, inner = up(width, LANES), up(channels, LANES)
    norm = inner * (2 * outputs + 1)
    return Sizes(
        width=width,
        outputs=outputs,
        row=outputs + LINE,
        channels=channels,
        inner=inner,
        bias=2 * outputs,
        panel=(2 * outputs + 1) * LANES,
        norm=norm,
        added=norm + 3 * outputs,
        numbers=norm + 4 * outputs,
    )


@jit
def _arrays(s, addresses, member):  # type: ignore[no-untyped-def]
    """A member's parameters, or their gradients, the numbers of each one after another."""
    size = s.width * s.channels
    return (
        of_member(addresses[0], size, member),
        of_member(addresses[1], s.channels, member),
        of_member(addresses[2], size, member),
        of_member(addresses[3], s.width, member),
    )


@jit
def lay_out(s, addresses, member, c, own, other):  # type: ignore[no-untyped-def]
    """Put a vector of channels of a member's parameters where the kernels want them, and with the first b2."""
    weight, bias, out_weight, out_bias = _arrays(s, addresses, member)
    panel = own[c // LANES * s.panel : (c // LANES + 1) * s.panel]
    panel[:] = 0.0
    for lane in range(min(LANES, s.channels - c)):
        channel, rows = c + lane, panel[lane::LANES]
        for i in range(s.width):
            rows[i], rows[s.outputs + i] = weight[channel * s.width + i], out_weight[i * s.channels + channel]
        rows[s.bias] = bias[channel]
    turn(own, s.panel, s.bias, s.inner, c, other)
    if c == 0:
        own[s.added : s.numbers] = 0.0
        own[s.added : s.added + s.width] = out_bias


@jit
def distribute(s, addresses, member, c, total):  # type: ignore[no-untyped-def]
    """Put a vector of channels of a member's gradients where its parameters come from."""
    weight, bias, out_weight, out_bias = _arrays(s, addresses, member)
    for lane in range(min(LANES, s.channels - c)):
        channel, rows = c + lane, total[c // LANES * s.panel + lane : (c // LANES + 1) * s.panel : LANES]
        for i in range(s.width):
            weight[channel * s.width + i], out_weight[i * s.channels + channel] = rows[i], rows[s.outputs + i]
        bias[channel] = rows[s.bias]
    if c == 0:
        out_bias[:] = total[s.added : s.added + s.width]


@jit
def gelu(x):  # type: ignore[no-untyped-def]
    """X Phi(x) and its slope Phi(x) + x phi(x); the error of Phi is below 1e-7.

    Phi(-z) = t (b1 + t (b2 + ...)) phi(z) for z > 0, t = 1 / (1 + b0 z)    (Abramowitz & Stegun 1964, 26.2.17)
    """
    z = F(2.0) * at_least(x, F(0.0)) - x
    density = exp(x * x * F(-0.5)) * F(0.3989422804014327)
    t = F(1.0) / (F(1.0) + z * F(0.2316419))
    tail = t * F(1.330274429) + F(-1.821255978)
    tail = tail * t + F(1.781477937)
    tail = tail * t + F(-0.356563782)
    tail = (tail * t + F(0.319381530)) * t * density
    below = signed(F(0.5) - tail, x) + F(0.5)
    return x * below, below + x * density


@jit
def relu(x):  # type: ignore[no-untyped-def]
    """The larger of x and 0, and its slope."""
    return at_least(x, F(0.0)), above_zero(x)


@jit
def _activated(s, own, hidden, begin, c, t, is_relu):  # type: ignore[no-untyped-def]
    """A tile of what is inside, activated, and its slope."""
    before = load_tile(hidden, begin + c // LANES * COLUMN + t * LANES)
    before += repeated(load(own, c // LANES * s.panel + s.bias * LANES))
    return relu(before) if is_relu else gelu(before)


@jit
def _masked(s, draws, seed, first, count, found):  # type: ignore[no-untyped-def]
    """Where in ``found`` the factors of entries begin, of so many tokens from a member's ``first`` on."""
    return factors(seed, draws.threshold, draws.scale, draws.begin + first * s.width, count * s.width, found)


@jit
def forward(s, own, other, is_relu, draws, seed, eps, before, begin, end, x, hidden, y):  # type: ignore[no-untyped-def]
    """Fill tokens ``begin`` to ``end`` of ``y`` with x + f(norm(x)), and by blocks what is to be activated.

    They are a member's, whose first token is number ``before``.
    """
    size = s.inner // LANES * COLUMN
    given, result, hat, rates = (
        scratch(TOKENS * s.row),
        scratch(TOKENS * s.row),
        scratch(TOKENS * s.row),
        scratch(TOKENS),
    )
    found, active = scratch(TOKENS * s.width + 2 * CHUNK), scratch(size)
    whole = s.width - s.width % LANES
    for token in range(begin, end, TOKENS):
        count, at = min(TOKENS, end - token), (token - begin) // TOKENS * size
        tokens = -(-count // GROUP) * GROUP
        take(x, token * s.width, count, s.width, given, s.row, tokens)
        normalise(given, s.row, tokens, s.width, s.outputs, own, s.norm, eps, hat, rates)
        expand(given, 0, s.row, s.width, own, 0, s.panel, False, hidden, at, COLUMN, tokens, s.inner)
        for c in range(0, s.inner, LANES):
            for t in range(0, tokens, GROUP):
                value, _ = _activated(s, own, hidden, at, c, t, is_relu)
                store(active, c // LANES * COLUMN + t * LANES, value)
        contract(
            active, 0, COLUMN, s.inner, other, s.outputs * s.inner, s.inner * LANES, False,
            result, 0, s.row, tokens, s.outputs,
        )  # fmt: skip
        skipped = _masked(s, draws, seed, token - before, count, found)
        for t in range(count):
            to, row, factor = (token + t) * s.width, t * s.row, skipped + t * s.width
            for i in range(0, whole, LANES):
                value = (load(result, row + i) + load(own, s.added + i)) * load(found, factor + i)
                store(y, to + i, load(x, to + i) + value)
            for i in range(whole, s.width):
                y[to + i] = x[to + i] + (result[row + i] + own[s.added + i]) * found[factor + i]


@jit
def backward(  # type: ignore[no-untyped-def]
    s, own, other, is_relu, draws, seed, eps, before, begin, end, dy, x, hidden, dx, total
):  # fmt: skip
    """Fill these tokens of ``dx``; add to ``total``, which is as the constants are."""
    size = s.inner // LANES * COLUMN
    given, upstream, result = scratch(TOKENS * s.row), scratch(TOKENS * s.row), scratch(TOKENS * s.row)
    hat, rates, means = scratch(TOKENS * s.row), scratch(TOKENS), scratch(2 * GROUP)
    found, d = scratch(TOKENS * s.width + 2 * CHUNK), scratch(size)
    active, slope = scratch(size), scratch(size)
    whole = s.width - s.width % LANES
    for token in range(begin, end, TOKENS):
        count, at = min(TOKENS, end - token), (token - begin) // TOKENS * size
        tokens = -(-count // GROUP) * GROUP
        take(dy, token * s.width, count, s.width, upstream, s.row, tokens)
        skipped = _masked(s, draws, seed, token - before, count, found)
        for t in range(count):
            row, factor = t * s.row, skipped + t * s.width
            for i in range(0, whole, LANES):
                value = load(upstream, row + i) * load(found, factor + i)
                store(upstream, row + i, value)
                store(total, s.added + i, load(total, s.added + i) + value)
            for i in range(whole, s.width):
                upstream[row + i] *= found[factor + i]
                total[s.added + i] += upstream[row + i]
        for c in range(0, s.inner, LANES):
            for t in range(0, tokens, GROUP):
                value, steep = _activated(s, own, hidden, at, c, t, is_relu)
                store(active, c // LANES * COLUMN + t * LANES, value)
                store(slope, c // LANES * COLUMN + t * LANES, steep)
        second = s.outputs * LANES
        outer(upstream, 0, s.row, s.width, active, 0, COLUMN, count, s.inner, total, second, s.panel)
        expand(upstream, 0, s.row, s.width, own, second, s.panel, False, d, 0, COLUMN, tokens, s.inner)
        for c in range(0, s.inner, LANES):
            place = c // LANES * s.panel + s.bias * LANES
            added = load(total, place)
            for t in range(count):
                inside = c // LANES * COLUMN + t * LANES
                value = load(d, inside) * load(slope, inside)
                store(d, inside, value)
                added += value
            store(total, place, added)
        take(x, token * s.width, count, s.width, given, s.row, tokens)
        normalise(given, s.row, tokens, s.width, s.outputs, own, s.norm, eps, hat, rates)
        outer(given, 0, s.row, s.width, d, 0, COLUMN, count, s.inner, total, 0, s.panel)
        contract(d, 0, COLUMN, s.inner, other, 0, s.inner * LANES, False, result, 0, s.row, tokens, s.outputs)
        normalise_back(result, s.row, tokens, s.width, s.outputs, own, s.norm, hat, rates, means, total)
        give(result, s.row, count, s.width, dy, dx, token * s.width)
