"""The Numba kernels of :mod:`scaling.ops.feed_forward`.

A block of tokens is dealt with on its own: what is inside the network lies as columns (:mod:`scaling.ops._products`)
in a core's cache. Arrays are flat; a member's tokens follow those of another. ``constants`` have a row for each member,
which holds W1 and W2, both as rows of what is inside, b1 and the norm; ``turned`` holds the weights again, as columns.
"""

import functools
from typing import NamedTuple

import numba

from scaling.ops._masks import CHUNK, factors
from scaling.ops._norm import lay_out_norm, normalise, normalise_back
from scaling.ops._products import contract, expand, give, outer, take, turn
from scaling.ops._vectors import GROUP, LANES, LINE, F, above_zero, at_least, exp, load, scratch, signed, store

TOKENS = 64
"""Of a block."""

COLUMN = TOKENS * LANES + LINE

jit = numba.njit(error_model="numpy", cache=True)
parallel = numba.njit(parallel=True, error_model="numpy", cache=True)


class Sizes(NamedTuple):
    """Numbers of a network, and the first row of each parameter among its constants and the sums of their gradients."""

    width: int
    outputs: int
    """``width`` to a multiple of ``LANES``; W1 begins at row 0, W2 at this one."""
    row: int
    """Numbers from one token's input or output to the next."""
    inner: int
    """Channels inside, a multiple of ``LANES``."""
    bias: int
    panel: int
    """Numbers from one vector of channels of all rows to the next."""
    norm: int
    """Where, behind all rows, weight and bias of the norm begin (:mod:`scaling.ops._norm`)."""
    numbers: int
    """Of constants; without a norm they end where it would begin."""
    members: int
    each: int
    """Tokens of a member."""
    blocks: int
    """Of a member."""


@functools.cache
def sizes_of(width: int, inner: int, members: int, each: int, normed: bool) -> Sizes:
    """The sizes for a network of any numbers."""
    outputs, inner = -(-width // LANES) * LANES, -(-inner // LANES) * LANES
    norm = inner * (2 * outputs + 1)
    return Sizes(
        width=width,
        outputs=outputs,
        row=outputs + LINE,
        inner=inner,
        bias=2 * outputs,
        panel=(2 * outputs + 1) * LANES,
        norm=norm,
        numbers=norm + 3 * outputs * normed,
        members=members,
        each=each,
        blocks=-(-each // TOKENS),
    )


@jit
def lay_out(s, weight, bias, out_weight, gamma, beta, constants, turned):  # type: ignore[no-untyped-def]
    """Put each member's parameters where the kernels want them, among zeros."""
    for member in range(s.members):
        for c in range(bias.shape[1]):
            own = constants[member, c // LANES * s.panel + c % LANES : (c // LANES + 1) * s.panel : LANES]
            for i in range(s.width):
                own[i], own[s.outputs + i] = weight[member, c, i], out_weight[member, i, c]
            own[s.bias] = bias[member, c]
        turn(constants[member], s.panel, s.bias, s.inner, turned[member])
        if s.numbers > s.norm:
            lay_out_norm(gamma[member], beta[member], s.outputs, constants[member], s.norm)


@jit
def distribute(s, sums, weight, bias, out_weight, gamma, beta):  # type: ignore[no-untyped-def]
    """Add up the sums of each member's chunks, and put the gradients where its parameters come from."""
    for member in range(s.members):
        for chunk in range(1, sums.shape[1]):
            sums[member, 0] += sums[member, chunk]
        for c in range(bias.shape[1]):
            total = sums[member, 0, c // LANES * s.panel + c % LANES : (c // LANES + 1) * s.panel : LANES]
            for i in range(s.width):
                weight[member, c, i], out_weight[member, i, c] = total[i], total[s.outputs + i]
            bias[member, c] = total[s.bias]
        if s.numbers > s.norm:
            for i in range(s.width):
                gamma[member, i], beta[member, i] = sums[member, 0, s.norm + i], sums[member, 0, s.norm + s.outputs + i]


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
def _of(s, block):  # type: ignore[no-untyped-def]
    """A block's member, its first token among the member's and among all, and how many there are."""
    member, first = block // s.blocks, block % s.blocks * TOKENS
    return member, first, member * s.each + first, min(TOKENS, s.each - first)


@jit
def _activate(s, own, hidden, begin, tokens, is_relu, active, slope):  # type: ignore[no-untyped-def]
    """What is activated, and its slope."""
    for c in range(0, s.inner, LANES):
        bias = load(own, c // LANES * s.panel + s.bias * LANES)
        for t in range(tokens):
            at = c // LANES * COLUMN + t * LANES
            before = load(hidden, begin + at) + bias
            value, steep = relu(before) if is_relu else gelu(before)
            store(active, at, value)
            store(slope, at, steep)


@jit
def _masked(s, seeds, threshold, scale, begin, member, first, count, found):  # type: ignore[no-untyped-def]
    """Where in ``found`` the factors of a block's entries begin."""
    return factors(seeds[member], threshold, scale, begin + first * s.width, count * s.width, found)


@parallel
def forward(  # type: ignore[no-untyped-def]
    x, eps, constants, turned, out_bias, s, is_relu, seeds, threshold, scale, begin, hidden, base, y, workers
):  # fmt: skip
    """Fill ``y``, which ``base`` is added to, and by blocks what is to be activated."""
    total, size = s.members * s.blocks, s.inner // LANES * COLUMN
    for worker in numba.prange(workers):
        given, result = scratch(TOKENS * s.row), scratch(TOKENS * s.row)
        found, active, slope = scratch(TOKENS * s.width + 2 * CHUNK), scratch(size), scratch(size)
        hat, rates = scratch(TOKENS * s.row), scratch(TOKENS)
        for block in range(worker * total // workers, (worker + 1) * total // workers):
            member, first, token, count = _of(s, block)
            own, tokens, at = constants[member], -(-count // GROUP) * GROUP, block * size
            take(x, token * s.width, count, s.width, given, s.row, tokens)
            if s.numbers > s.norm:
                normalise(given, s.row, tokens, s.width, s.outputs, own, s.norm, eps, hat, rates)
            expand(given, 0, s.row, s.width, own, 0, s.panel, False, hidden, at, COLUMN, tokens, s.inner)
            _activate(s, own, hidden, at, tokens, is_relu, active, slope)
            contract(
                active, 0, COLUMN, s.inner, turned[member], s.outputs * s.inner, s.inner * LANES, False,
                result, 0, s.row, tokens, s.outputs,
            )  # fmt: skip
            skipped = _masked(s, seeds, threshold, scale, begin, member, first, count, found)
            for t in range(count):
                for i in range(s.width):
                    value = (result[t * s.row + i] + out_bias[member, i]) * found[skipped + t * s.width + i]
                    y[(token + t) * s.width + i] = base[(token + t) * s.width + i] + value


@parallel
def backward(  # type: ignore[no-untyped-def]
    dy, x, eps, constants, turned, s, is_relu, seeds, threshold, scale, begin, hidden, base, dx, sums, bias_sums,
    workers,
):  # fmt: skip
    """Fill ``dx``, which ``base`` is added to; add to ``sums`` (chunk, and as the constants are) and ``bias_sums``."""
    chunks, size = len(sums) // s.members, s.inner // LANES * COLUMN
    for worker in numba.prange(workers):
        given, upstream, result = scratch(TOKENS * s.row), scratch(TOKENS * s.row), scratch(TOKENS * s.row)
        found, d = scratch(TOKENS * s.width + 2 * CHUNK), scratch(size)
        active, slope = scratch(size), scratch(size)
        hat, rates, means = scratch(TOKENS * s.row), scratch(TOKENS), scratch(2 * GROUP)
        for chunk in range(worker * len(sums) // workers, (worker + 1) * len(sums) // workers):
            before, part, total, d_bias = chunk // chunks * s.blocks, chunk % chunks, sums[chunk], bias_sums[chunk]
            for block in range(before + part * s.blocks // chunks, before + (part + 1) * s.blocks // chunks):
                member, first, token, count = _of(s, block)
                own, other, tokens, at = constants[member], turned[member], -(-count // GROUP) * GROUP, block * size
                skipped = _masked(s, seeds, threshold, scale, begin, member, first, count, found)
                for t in range(count):
                    for i in range(s.width):
                        value = dy[(token + t) * s.width + i] * found[skipped + t * s.width + i]
                        upstream[t * s.row + i] = value
                        d_bias[i] += value
                upstream[count * s.row : tokens * s.row] = F(0.0)
                _activate(s, own, hidden, at, tokens, is_relu, active, slope)
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
                if s.numbers > s.norm:
                    normalise(given, s.row, tokens, s.width, s.outputs, own, s.norm, eps, hat, rates)
                outer(given, 0, s.row, s.width, d, 0, COLUMN, count, s.inner, total, 0, s.panel)
                contract(d, 0, COLUMN, s.inner, other, 0, s.inner * LANES, False, result, 0, s.row, tokens, s.outputs)
                if s.numbers > s.norm:
                    normalise_back(result, s.row, tokens, s.width, s.outputs, own, s.norm, hat, rates, means, total)
                give(result, s.row, count, s.width, base, dx, token * s.width)
