"""Small matrix products inside Numba kernels, on operands that lie in a core's cache.

Two layouts meet. In *rows* a token's numbers follow one another, and ``row`` is the step to the next token. In
*columns* all tokens of a vector of channels follow one another, and ``column`` is the step to the next vector: a tile
is a vector of four tokens. A matrix of weights lies like columns, its rows in the place of tokens, ``panel`` being the
step to the next vector of outputs. Each product holds two tiles in registers. Tokens go by fours: both layouts have
room for as many, and no token's numbers reach another's. An odd last vector is computed twice.
"""

from scaling.ops._jit import jit
from scaling.ops._vectors import (
    GROUP,
    LANES,
    LINE,
    load,
    load_rows,
    load_tile,
    repeated,
    spread,
    store,
    store_rows,
    zeros,
)


@jit
def take(x, begin, time, width, rows, row, tokens):  # type: ignore[no-untyped-def]
    """Copy tokens that are packed one after another into rows; zeros follow each, and all up to ``tokens``."""
    whole, outputs = width - width % LANES, row - LINE
    for t in range(time):
        for i in range(0, whole, LANES):
            store(rows, t * row + i, load(x, begin + t * width + i))
        for i in range(whole, width):
            rows[t * row + i] = x[begin + t * width + i]
        for i in range(width, outputs):
            rows[t * row + i] = 0.0
    for i in range(time * row, tokens * row):
        rows[i] = 0.0


@jit
def give(rows, row, time, width, base, x, begin):  # type: ignore[no-untyped-def]
    """Fill tokens that are packed one after another with the sum of rows and a base."""
    whole = width - width % LANES
    for t in range(time):
        for i in range(0, whole, LANES):
            at = begin + t * width + i
            store(x, at, load(base, at) + load(rows, t * row + i))
        for i in range(whole, width):
            at = begin + t * width + i
            x[at] = base[at] + rows[t * row + i]


@jit
def expand(  # type: ignore[no-untyped-def]
    rows, first, row, count, weights, place, panel, adding, columns, to, column, tokens, channels
):  # fmt: skip
    """columns[t, c] = sum_k rows[t, k] weights[k, c] for ``count`` k, or that added to what is there."""
    for c in range(0, channels, 2 * LANES):
        one_weight, one_to = place + c // LANES * panel, to + c // LANES * column
        other = 0 if c + LANES == channels else 1
        two_weight, two_to = one_weight + other * panel, one_to + other * column
        for t in range(0, tokens, GROUP):
            one, two = zeros(), zeros()
            if adding:
                one, two = load_tile(columns, one_to + t * LANES), load_tile(columns, two_to + t * LANES)
            for k in range(count):
                each = spread(rows, first + t * row + k, row)
                one += each * repeated(load(weights, one_weight + k * LANES))
                two += each * repeated(load(weights, two_weight + k * LANES))
            store(columns, one_to + t * LANES, one)
            store(columns, two_to + t * LANES, two)


@jit
def contract(  # type: ignore[no-untyped-def]
    columns, begin, column, channels, weights, place, panel, adding, rows, first, row, tokens, outputs
):  # fmt: skip
    """rows[t, k] = sum_c columns[t, c] weights[c, k] for ``outputs`` k, whole vectors, or that added."""
    for k in range(0, outputs, 2 * LANES):
        one_weight, other = place + k // LANES * panel, 0 if k + LANES == outputs else LANES
        two_weight = one_weight + other // LANES * panel
        for t in range(0, tokens, GROUP):
            at = first + t * row + k
            one, two = zeros(), zeros()
            if adding:
                one, two = load_rows(rows, at, row), load_rows(rows, at + other, row)
            for c in range(0, channels, LANES):
                source = begin + c // LANES * column + t * LANES
                for lane in range(LANES):
                    each = spread(columns, source + lane, LANES)
                    one += each * repeated(load(weights, one_weight + (c + lane) * LANES))
                    two += each * repeated(load(weights, two_weight + (c + lane) * LANES))
            store_rows(rows, at, row, one)
            store_rows(rows, at + other, row, two)


@jit
def outer(  # type: ignore[no-untyped-def]
    rows, first, row, count, columns, begin, column, time, channels, total, place, panel
):  # fmt: skip
    """total[i, c] += sum_t rows[t, i] columns[t, c] for ``count`` i, by fours."""
    for c in range(0, channels, 2 * LANES):
        other = 0 if c + LANES == channels else 1
        one_from = begin + c // LANES * column
        two_from = one_from + other * column
        for i in range(0, count, GROUP):
            one_to = place + c // LANES * panel + i * LANES
            two_to = one_to + other * panel
            one, two = load_tile(total, one_to), load_tile(total, two_to)
            for t in range(time):
                each = spread(rows, first + t * row + i, 1)
                one += each * repeated(load(columns, one_from + t * LANES))
                two += each * repeated(load(columns, two_from + t * LANES))
            store(total, one_to, one)
            store(total, two_to, two)


@jit
def turn(weights, panel, count, channels, c, turned):  # type: ignore[no-untyped-def]
    """A vector of channels of the first ``count`` rows of weights, as columns: what :func:`contract` wants.

    Here a row has ``channels`` times a vector's length between one vector of rows and the next.
    """
    for k in range(0, count, LANES):
        source, to = c // LANES * panel + k * LANES, k * channels + c * LANES
        for i in range(LANES):
            for j in range(LANES):
                turned[to + i * LANES + j] = weights[source + j * LANES + i]
