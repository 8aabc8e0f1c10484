"""A Mamba block inside Numba kernels, written with vectors of channels.

A sequence is dealt with on its own: what it needs lies in a worker's scratch, as columns
(:mod:`scaling.ops._products`), since the scan goes along tokens; rows of channels would fall on few sets of a core's
cache. Every ``length`` tokens a piece of it begins, before which nothing has been: convolution and scan go piece by
piece, all else through the whole sequence. A tile is a vector of channels for four states, four tokens or four taps.
Arrays are flat. A member's ``own`` constants hold rows of channels of its parameters, ``other`` the weights' columns.
"""

from scaling.ops._chunks import chunk
from scaling.ops._elementary import exp2, sigmoid, softplus, softplus_and_slope
from scaling.ops._jit import jit
from scaling.ops._mamba_layout import LN2
from scaling.ops._norm import normalise, normalise_back
from scaling.ops._products import contract, expand, give, outer, take
from scaling.ops._vectors import (
    GROUP,
    LANES,
    F,
    folded,
    load,
    load_rows,
    load_tile,
    repeated,
    scratch,
    spread,
    store,
    store_sums,
    zeros,
)

SEGMENT = 64
"""Most tokens whose states the backward pass keeps at once; a longer piece is gone through once more to find where
each segment starts."""

TILE = GROUP * LANES


@jit
def _own(s, row, c):  # type: ignore[no-untyped-def]
    """Where a row of a vector of channels lies among constants and sums of gradients."""
    return c // LANES * s.panel + row * LANES


@jit
def _at(s, t, c):  # type: ignore[no-untyped-def]
    """Where a vector of channels of a token lies in the scratch."""
    return c // LANES * s.column + t * LANES


@jit
def _of_piece(s, t, c):  # type: ignore[no-untyped-def]
    """Where it lies among those of a piece, to which rows of zeros belong."""
    return c // LANES * s.piece + t * LANES


@jit
def _inputs(s, sequence):  # type: ignore[no-untyped-def]
    """Where what is convolved of a sequence begins, and then what opens its gate."""
    half = s.channels // LANES * s.column
    return 2 * sequence * half, (2 * sequence + 1) * half


@jit
def _project(s, own, rows, xz, sequence):  # type: ignore[no-untyped-def]
    """W_in u: what is convolved and what opens the gate, as columns."""
    x, z = _inputs(s, sequence)
    expand(rows, 0, s.row, s.width, own, 0, s.panel, False, xz, x, s.column, s.tokens, s.channels)
    expand(rows, 0, s.row, s.width, own, s.gate * LANES, s.panel, False, xz, z, s.column, s.tokens, s.channels)


@jit
def _take_in(s, xz, sequence, first, past):  # type: ignore[no-untyped-def]
    """Copy what is convolved of a piece behind the rows of zeros that stand for tokens before it."""
    begin, _ = _inputs(s, sequence)
    for c in range(0, s.channels, LANES):
        for t in range(s.length):
            store(past, _of_piece(s, t + s.taps - 1, c), load(xz, begin + _at(s, first + t, c)))


@jit
def _convolved(s, own, past, t, c):  # type: ignore[no-untyped-def]
    """A token of a piece's causal convolution, before its activation."""
    total = load(own, _own(s, s.conv + s.taps, c))
    for k in range(0, s.taps, GROUP):
        taps = load_tile(own, _own(s, s.conv + k, c))
        total = total + folded(load_tile(past, _of_piece(s, t + k, c)) * taps)
    return total


@jit
def _convolve(s, own, xz, sequence, past, x):  # type: ignore[no-untyped-def]
    """What the convolution gives, before its activation."""
    for first in range(0, s.time, s.length):
        _take_in(s, xz, sequence, first, past)
        for c in range(0, s.channels, LANES):
            for t in range(s.length):
                store(x, _at(s, first + t, c), _convolved(s, own, past, t, c))


@jit
def _activate(s, own, x, out):  # type: ignore[no-untyped-def]
    """``x`` goes through its activation; fill ``out`` with D x."""
    for c in range(0, s.channels, LANES):
        D = repeated(load(own, _own(s, s.D, c)))
        for t in range(0, s.tokens, GROUP):
            at = _at(s, t, c)
            before = load_tile(x, at)
            convolved = before * sigmoid(before)
            store(x, at, convolved)
            store(out, at, convolved * D)


@jit
def _step_size(s, own, chosen, t, c):  # type: ignore[no-untyped-def]
    """A tile of four tokens: dt before its softplus."""
    total = repeated(load(own, _own(s, s.dt_bias, c)))
    for r in range(s.rank):
        weight = repeated(load(own, _own(s, s.step + r, c)))
        total += spread(chosen, t * s.selected + s.low + r, s.selected) * weight
    return total


@jit
def _scan(s, own, chosen, dt, drive, out):  # type: ignore[no-untyped-def]
    """Add C . h to the outputs."""
    for n in range(0, s.states, GROUP):
        for c in range(0, s.channels, LANES):
            A = load_tile(own, _own(s, s.A + n, c))
            for first in range(0, s.time, s.length):
                h = zeros()
                for t in range(first, first + s.length):
                    at, B, C = _at(s, t, c), t * s.selected + n, t * s.selected + s.states + n
                    h = exp2(repeated(load(dt, at)) * A) * h + repeated(load(drive, at)) * spread(chosen, B, 1)
                    store(out, at, load(out, at) + folded(h * spread(chosen, C, 1)))


@jit
def _gate(s, xz, sequence, out):  # type: ignore[no-untyped-def]
    """Outputs through their gate."""
    _, begin = _inputs(s, sequence)
    for c in range(0, s.channels, LANES):
        for t in range(0, s.tokens, GROUP):
            at = _at(s, t, c)
            z = load_tile(xz, begin + at)
            store(out, at, load_tile(out, at) * z * sigmoid(z))


@jit
def forward(s, laid, shares, begin, end, eps, u, base, y, xz, selected):  # type: ignore[no-untyped-def]
    """Fill what is kept, the inputs as columns and what was selected, and the results, which ``base`` is added to.

    For the sequences of groups ``begin`` to ``end``; ``laid`` has a row of constants and turned weights per member.
    """
    columns, of_piece = s.channels // LANES * s.column, s.channels // LANES * s.piece
    given, result, hat, rates = (
        scratch(s.tokens * s.row), scratch(s.tokens * s.row), scratch(s.tokens * s.row), scratch(s.tokens)
    )  # fmt: skip
    past, chosen = scratch(of_piece), scratch(s.tokens * s.selected)
    x, dt, drive, out = scratch(columns), scratch(columns), scratch(columns), scratch(columns)
    for number in range(begin, end):
        member, first, last = chunk(shares, number)
        own, other = laid[member, : s.numbers], laid[member, s.numbers :]
        for b in range(first, last):
            at = b * s.time * s.width
            take(u, at, s.time, s.width, given, s.row, s.tokens)
            if s.normed:
                normalise(given, s.row, s.tokens, s.width, s.outputs, own, s.norm, eps, hat, rates)
            _project(s, own, given, xz, b)
            _convolve(s, own, xz, b, past, x)
            _activate(s, own, x, out)
            contract(
                x, 0, s.column, s.channels, other, s.select * s.channels, s.channels * LANES, False,
                chosen, 0, s.selected, s.tokens, s.selected,
            )  # fmt: skip
            for c in range(0, s.channels, LANES):
                for t in range(0, s.tokens, GROUP):
                    place, size = _at(s, t, c), softplus(_step_size(s, own, chosen, t, c))
                    store(dt, place, size)
                    store(drive, place, size * load_tile(x, place))
            _scan(s, own, chosen, dt, drive, out)
            _gate(s, xz, b, out)
            contract(
                out, 0, s.column, s.channels, other, s.out * s.channels, s.channels * LANES, False,
                result, 0, s.row, s.tokens, s.outputs,
            )  # fmt: skip
            give(result, s.row, s.time, s.width, base, y, at)
            for i in range(0, s.time * s.selected, LANES):
                store(selected, b * s.time * s.selected + i, load(chosen, i))


@jit
def _carry(s, A, chosen, dt, drive, n, c, first, last, h):  # type: ignore[no-untyped-def]
    """Take four states through a segment."""
    for t in range(first, last):
        at = _at(s, t, c)
        decay = exp2(repeated(load(dt, at)) * A)
        h = decay * h + repeated(load(drive, at)) * spread(chosen, t * s.selected + n, 1)
    return h


@jit
def _remember(s, A, chosen, dt, drive, n, c, first, last, h, states, decays, out, d_out, d_C):  # type: ignore[no-untyped-def]
    """Take four states through a segment, write down all of them and their decays, and add C . h to the outputs.

    Adds to the gradient of C, for each channel of a vector on its own.
    """
    store(states, 0, h)
    for t in range(first, last):
        at, B, C = _at(s, t, c), t * s.selected + n, t * s.selected + s.states + n
        decay = exp2(repeated(load(dt, at)) * A)
        h = decay * h + repeated(load(drive, at)) * spread(chosen, B, 1)
        store(decays, (t - first) * TILE, decay)
        store(states, (t - first + 1) * TILE, h)
        store(out, at, load(out, at) + folded(h * spread(chosen, C, 1)))
        store(d_C, t * TILE, load_tile(d_C, t * TILE) + repeated(load(d_out, at)) * h)


@jit
def _return(  # type: ignore[no-untyped-def]
    s, A, chosen, dt, drive, n, c, first, last, dh, dA, states, decays, d_out, d_drive, d_dt, d_B
):  # fmt: skip
    """Take gradients of four states and of their A back through a segment.

    Adds to those of drive and of dt (by ln 2), and, for each channel of a vector on its own, of B.
    """
    for back in range(last - first):
        t = last - 1 - back
        at, B, C, place = _at(s, t, c), t * s.selected + n, t * s.selected + s.states + n, (t - first) * TILE
        dh = dh + repeated(load(d_out, at)) * spread(chosen, C, 1)
        store(d_B, t * TILE, load_tile(d_B, t * TILE) + dh * repeated(load(drive, at)))
        store(d_drive, at, load(d_drive, at) + folded(dh * spread(chosen, B, 1)))
        dh = dh * load_tile(decays, place)
        d_exponent = dh * load_tile(states, place)
        store(d_dt, at, load(d_dt, at) + folded(d_exponent * A))
        dA = dA + d_exponent * repeated(load(dt, at))
    return dh, dA


@jit
def _scan_back(  # type: ignore[no-untyped-def]
    s, own, chosen, dt, drive, d_out, out, d_drive, d_dt, d_chosen, total, starts, states, decays, d_B, d_C
):  # fmt: skip
    """Find states again, four of a vector of channels at a time, and take their gradients back."""
    segments = -(-s.length // SEGMENT)
    for n in range(0, s.states, GROUP):
        d_B[:], d_C[:] = F(0.0), F(0.0)
        for c in range(0, s.channels, LANES):
            place = _own(s, s.A + n, c)
            A, dA = load_tile(own, place), load_tile(total, place)
            for begin in range(0, s.time, s.length):
                h, dh = zeros(), zeros()
                for at in range(segments - 1):
                    store(starts, at * TILE, h)
                    h = _carry(s, A, chosen, dt, drive, n, c, begin + at * SEGMENT, begin + (at + 1) * SEGMENT, h)
                store(starts, (segments - 1) * TILE, h)
                for back in range(segments):
                    at = segments - 1 - back
                    first, last = begin + at * SEGMENT, begin + min((at + 1) * SEGMENT, s.length)
                    h = load_tile(starts, at * TILE)
                    _remember(s, A, chosen, dt, drive, n, c, first, last, h, states, decays, out, d_out, d_C)
                    dh, dA = _return(
                        s, A, chosen, dt, drive, n, c, first, last, dh, dA, states, decays, d_out, d_drive, d_dt, d_B
                    )  # fmt: skip
            store(total, place, dA)
        for t in range(s.time):
            store_sums(d_chosen, t * s.selected + n, load_tile(d_B, t * TILE))
            store_sums(d_chosen, t * s.selected + s.states + n, load_tile(d_C, t * TILE))


@jit
def _convolve_back(s, own, xz, past, d_x, slope, after, sequence, d_in, total):  # type: ignore[no-untyped-def]
    """Fill the gradient of what is convolved, add to the sums of the taps and of the bias.

    ``d_x`` is the gradient of what the activation gives; in ``after`` rows of zeros follow a piece of what it is given.
    """
    for first in range(0, s.time, s.length):
        _take_in(s, xz, sequence, first, past)
        for c in range(0, s.channels, LANES):
            d_bias = load(total, _own(s, s.conv + s.taps, c))
            for t in range(s.length):
                at = _at(s, first + t, c)
                d = load(d_x, at) * load(slope, at)
                store(after, _of_piece(s, t, c), d)
                d_bias += d
            store(total, _own(s, s.conv + s.taps, c), d_bias)
            for k in range(0, s.taps, GROUP):
                place = _own(s, s.conv + k, c)
                found = load_tile(total, place)
                for t in range(s.length):
                    found += load_tile(past, _of_piece(s, t + k, c)) * repeated(load(after, _of_piece(s, t, c)))
                store(total, place, found)
            for t in range(s.length):
                found = zeros()
                for k in range(0, s.taps, GROUP):
                    taps = load_tile(own, _own(s, s.conv + k, c))
                    found += taps * load_rows(after, _of_piece(s, t + s.taps - 1 - k, c), -LANES)
                store(d_in, _at(s, first + t, c), folded(found))


@jit
def _begin(s, own, xz, d_y, sequence, x, slope, out, d_out, opened, d_z):  # type: ignore[no-untyped-def]
    """``x`` goes through its activation; fill its slope, D x, the open gate, and its gradient but for a factor.

    That is what goes through the gate, found later. Gradients are zero beyond the last token, since ``d_y`` is.
    """
    _, gate = _inputs(s, sequence)
    for c in range(0, s.channels, LANES):
        D = repeated(load(own, _own(s, s.D, c)))
        for t in range(0, s.tokens, GROUP):
            at = _at(s, t, c)
            before = load_tile(x, at)
            on = sigmoid(before)
            convolved = before * on
            store(x, at, convolved)
            store(slope, at, on + convolved * (F(1.0) - on))
            store(out, at, convolved * D)
        for t in range(0, s.tokens, GROUP):
            at = _at(s, t, c)
            z, d = load_tile(xz, gate + at), load_tile(d_y, at)
            on = sigmoid(z)
            store(opened, at, z * on)
            store(d_out, at, d * z * on)
            store(d_z, at, d * (on + z * on * (F(1.0) - on)))


@jit
def _open(s, own, chosen, x, dt, drive, opening):  # type: ignore[no-untyped-def]
    """Step sizes, what they drive, and the slope of their softplus."""
    for c in range(0, s.channels, LANES):
        for t in range(0, s.tokens, GROUP):
            at, (size, slope) = _at(s, t, c), softplus_and_slope(_step_size(s, own, chosen, t, c))
            store(dt, at, size)
            store(opening, at, slope)
            store(drive, at, size * load_tile(x, at))


@jit
def _close(s, own, x, dt, opening, out, opened, d_out, d_drive, d_dt, d_z, d_x, total):  # type: ignore[no-untyped-def]
    """Gradients of the gate, of D, and of x and of the step sizes as far as the scan goes; ``d_dt`` becomes theirs.

    ``out`` goes through its gate.
    """
    for c in range(0, s.channels, LANES):
        D, dD = load(own, _own(s, s.D, c)), load(total, _own(s, s.D, c))
        d_bias = load(total, _own(s, s.dt_bias, c))
        for t in range(s.time):
            at = _at(s, t, c)
            before = load(out, at)
            store(d_z, at, load(d_z, at) * before)
            store(out, at, load(opened, at) * before)
            dD += load(d_out, at) * load(x, at)
            store(d_x, at, load(d_out, at) * D + load(d_drive, at) * load(dt, at))
            d_delta = (load(d_dt, at) * LN2 + load(d_drive, at) * load(x, at)) * load(opening, at)
            d_bias += d_delta
            store(d_dt, at, d_delta)
        store(total, _own(s, s.D, c), dD)
        store(total, _own(s, s.dt_bias, c), d_bias)


@jit
def _select_back(s, own, other, chosen, d_chosen, x, d_delta, d_x, total):  # type: ignore[no-untyped-def]
    """Take gradients of step sizes and of what was selected back to x; add to those of W_dt and W_x."""
    low, step, select = s.low, s.step * LANES, s.select * LANES
    contract(
        d_delta, 0, s.column, s.channels, other, s.step * s.channels, s.channels * LANES, False,
        d_chosen, low, s.selected, s.tokens, s.selected - low,
    )  # fmt: skip
    outer(chosen, low, s.selected, s.rank, d_delta, 0, s.column, s.time, s.channels, total, step, s.panel)
    for first, count in ((0, 2 * s.states), (low, s.rank)):
        place = select + first * LANES
        outer(d_chosen, first, s.selected, count, x, 0, s.column, s.time, s.channels, total, place, s.panel)
        expand(d_chosen, first, s.selected, count, own, place, s.panel, True, d_x, 0, s.column, s.tokens, s.channels)


@jit
def _project_back(s, other, given, d_in, d_z, d_rows, total):  # type: ignore[no-untyped-def]
    """Gradient of the input; add to those of W_in."""
    contract(d_in, 0, s.column, s.channels, other, 0, s.channels * LANES, False, d_rows, 0, s.row, s.tokens, s.outputs)
    contract(
        d_z, 0, s.column, s.channels, other, s.gate * s.channels, s.channels * LANES, True,
        d_rows, 0, s.row, s.tokens, s.outputs,
    )  # fmt: skip
    outer(given, 0, s.row, s.width, d_in, 0, s.column, s.time, s.channels, total, 0, s.panel)
    outer(given, 0, s.row, s.width, d_z, 0, s.column, s.time, s.channels, total, s.gate * LANES, s.panel)


@jit
def backward(  # type: ignore[no-untyped-def]
    s, laid, shares, begin, end, eps, u, dy, base, d_u, xz, selected, sums, place
):  # fmt: skip
    """Fill ``d_u``, which ``base`` is added to; add to ``sums`` of each group, as the constants are from a place on."""
    columns, of_piece = s.channels // LANES * s.column, s.channels // LANES * s.piece
    segments = -(-s.length // SEGMENT)
    given, upstream, d_rows = scratch(s.tokens * s.row), scratch(s.tokens * s.row), scratch(s.tokens * s.row)
    past, after = scratch(of_piece), scratch(of_piece)
    chosen, d_chosen, d_x = scratch(s.tokens * s.selected), scratch(s.tokens * s.selected), scratch(columns)
    x, slope, dt, drive, opening = (
        scratch(columns), scratch(columns), scratch(columns), scratch(columns), scratch(columns)
    )  # fmt: skip
    out, d_out, d_drive, d_dt = scratch(columns), scratch(columns), scratch(columns), scratch(columns)
    opened, d_in, d_z = scratch(columns), scratch(columns), scratch(columns)
    starts, states, decays = scratch(segments * TILE), scratch((SEGMENT + 1) * TILE), scratch(SEGMENT * TILE)
    d_B, d_C = scratch(s.time * TILE), scratch(s.time * TILE)
    hat, rates, means = scratch(s.tokens * s.row), scratch(s.tokens), scratch(2 * GROUP)
    for number in range(begin, end):
        member, first, last = chunk(shares, number)
        own, other, total = laid[member, : s.numbers], laid[member, s.numbers :], sums[number, place:]
        for b in range(first, last):
            at = b * s.time * s.width
            take(u, at, s.time, s.width, given, s.row, s.tokens)
            if s.normed:
                normalise(given, s.row, s.tokens, s.width, s.outputs, own, s.norm, eps, hat, rates)
            take(dy, at, s.time, s.width, upstream, s.row, s.tokens)
            for i in range(0, s.time * s.selected, LANES):
                store(chosen, i, load(selected, b * s.time * s.selected + i))
            expand(
                upstream, 0, s.row, s.width, own, s.out * LANES, s.panel, False,
                d_x, 0, s.column, s.tokens, s.channels,
            )  # fmt: skip
            _convolve(s, own, xz, b, past, x)
            _begin(s, own, xz, d_x, b, x, slope, out, d_out, opened, d_z)
            _open(s, own, chosen, x, dt, drive, opening)
            d_drive[:], d_dt[:] = F(0.0), F(0.0)
            _scan_back(
                s, own, chosen, dt, drive, d_out, out, d_drive, d_dt, d_chosen, total, starts, states, decays, d_B, d_C
            )
            _close(s, own, x, dt, opening, out, opened, d_out, d_drive, d_dt, d_z, d_x, total)
            outer(upstream, 0, s.row, s.width, out, 0, s.column, s.time, s.channels, total, s.out * LANES, s.panel)
            _select_back(s, own, other, chosen, d_chosen, x, d_dt, d_x, total)
            _convolve_back(s, own, xz, past, d_x, slope, after, b, d_in, total)
            _project_back(s, other, given, d_in, d_z, d_rows, total)
            if s.normed:
                normalise_back(d_rows, s.row, s.tokens, s.width, s.outputs, own, s.norm, hat, rates, means, total)
            give(d_rows, s.row, s.time, s.width, base, d_u, at)
