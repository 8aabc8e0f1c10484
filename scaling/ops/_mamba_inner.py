"""The Numba kernels of :mod:`scaling.ops.mamba_inner`, written with vectors of channels.

A sequence is dealt with on its own: what it needs lies in a worker's scratch, where for each vector of channels all
tokens follow one another, since the scan goes along them; rows of channels would fall on few sets of a core's cache.
Every ``length`` tokens a piece of it begins, before which nothing has been: convolution and scan go piece by piece,
all else through the whole sequence. A tile is a vector of channels for four states, four tokens or four taps. All
arrays are flat. W_x is there twice: ``constants`` hold its rows of channels, ``mixing`` its columns.
"""

import numba
import numpy as np

from scaling.ops._vectors import (
    GROUP,
    LANES,
    F,
    exp2,
    folded,
    load,
    load_rows,
    load_tile,
    repeated,
    scratch,
    sigmoid,
    softplus,
    softplus_and_slope,
    spread,
    store,
    store_rows,
    store_sums,
    zeros,
)

SEGMENT = 64
"""Most tokens whose states the backward pass keeps at once; a longer piece is gone through once more to find where
each segment starts."""

TILE = GROUP * LANES

LN2 = F(np.log(2.0))

jit = numba.njit(error_model="numpy", cache=True)
parallel = numba.njit(parallel=True, error_model="numpy", cache=True)


@jit
def _input(s, sequence, t):  # type: ignore[no-untyped-def]
    """Where the inputs of a token begin: what is convolved, then the gate."""
    return 2 * ((sequence * s.time + t) * s.row + s.first)


@jit
def _output(s, sequence, t):  # type: ignore[no-untyped-def]
    """Where its outputs begin."""
    return (sequence * s.time + t) * s.row + s.first


@jit
def _at(s, t, c):  # type: ignore[no-untyped-def]
    """Where a vector of channels of a token lies in the scratch."""
    return c // LANES * s.column + t * LANES


@jit
def _of_piece(s, t, c):  # type: ignore[no-untyped-def]
    """Where it lies among those of a piece, to which rows of zeros belong."""
    return c // LANES * s.piece + t * LANES


@jit
def _take_in(s, xz, sequence, first, past):  # type: ignore[no-untyped-def]
    """Copy what is convolved of a piece behind the rows of zeros that stand for tokens before it."""
    for t in range(s.length):
        source = _input(s, sequence, first + t)
        for c in range(0, s.channels, LANES):
            store(past, _of_piece(s, t + s.taps - 1, c), load(xz, source + c))


@jit
def _convolved(s, own, past, t, c):  # type: ignore[no-untyped-def]
    """A token of a piece's causal convolution, before its activation."""
    total = load(own, (s.conv + s.taps) * s.channels + c)
    for k in range(0, s.taps, GROUP):
        taps = load_rows(own, (s.conv + k) * s.channels + c, s.channels)
        total = total + folded(load_tile(past, _of_piece(s, t + k, c)) * taps)
    return total


@jit
def _convolve(s, own, xz, sequence, past, x, out):  # type: ignore[no-untyped-def]
    """What the convolution gives, and D x."""
    for first in range(0, s.time, s.length):
        _take_in(s, xz, sequence, first, past)
        for t in range(s.length):
            for c in range(0, s.channels, LANES):
                at, before = _at(s, first + t, c), _convolved(s, own, past, t, c)
                convolved = before * sigmoid(before)
                store(x, at, convolved)
                store(out, at, convolved * load(own, s.D * s.channels + c))


@jit
def _select(s, x, mixing, begin, chosen):  # type: ignore[no-untyped-def]
    """chosen[t, p] = sum_c W_x[p, c] x[t, c], four tokens and two vectors of p at a time."""
    for t in range(0, s.tokens, GROUP):
        for p in range(0, s.selected, 2 * LANES):
            other = min(p + LANES, s.selected - LANES)  # the last vector, if it has no neighbour, twice
            one, two = zeros(), zeros()
            for first in range(0, s.channels, LANES):
                for c in range(LANES):
                    row, inputs = begin + (first + c) * s.selected, spread(x, _at(s, t, first) + c, LANES)
                    one += inputs * repeated(load(mixing, row + p))
                    two += inputs * repeated(load(mixing, row + other))
            store_rows(chosen, t * s.selected + p, s.selected, one)
            store_rows(chosen, t * s.selected + other, s.selected, two)


@jit
def _step_size(s, own, chosen, t, c):  # type: ignore[no-untyped-def]
    """A tile of four tokens: dt before its softplus."""
    total = repeated(load(own, s.dt_bias * s.channels + c))
    for r in range(s.rank):
        weight = repeated(load(own, (s.dt_weight + r) * s.channels + c))
        total += spread(chosen, t * s.selected + 2 * s.states + r, s.selected) * weight
    return total


@jit
def _scan(s, own, chosen, dt, drive, out):  # type: ignore[no-untyped-def]
    """Add C . h to the outputs."""
    for n in range(0, s.states, GROUP):
        for c in range(0, s.channels, LANES):
            A = load_rows(own, (s.A + n) * s.channels + c, s.channels)
            for first in range(0, s.time, s.length):
                h = zeros()
                for t in range(first, first + s.length):
                    at, B, C = _at(s, t, c), t * s.selected + n, t * s.selected + s.states + n
                    h = exp2(repeated(load(dt, at)) * A) * h + repeated(load(drive, at)) * spread(chosen, B, 1)
                    store(out, at, load(out, at) + folded(h * spread(chosen, C, 1)))


@jit
def _gate(s, xz, sequence, out, y):  # type: ignore[no-untyped-def]
    """Outputs through their gate."""
    for t in range(s.time):
        gate, to = _input(s, sequence, t) + s.channels, _output(s, sequence, t)
        for c in range(0, s.channels, LANES):
            z = load(xz, gate + c)
            store(y, to + c, load(out, _at(s, t, c)) * z * sigmoid(z))


@parallel
def forward(xz, constants, mixing, s, members, batch, y, selected, workers):  # type: ignore[no-untyped-def]
    """Fill the results and what was selected."""
    rows, of_piece = s.channels // LANES * s.column, s.channels // LANES * s.piece
    for worker in numba.prange(workers):
        past, chosen = scratch(of_piece), scratch(s.tokens * s.selected)
        x, dt, drive, out = scratch(rows), scratch(rows), scratch(rows), scratch(rows)
        for b in range(worker * batch // workers, (worker + 1) * batch // workers):
            member = b // (batch // members)
            own = constants[member]
            _convolve(s, own, xz, b, past, x, out)
            _select(s, x, mixing, member * s.channels * s.selected, chosen)
            for t in range(0, s.tokens, GROUP):
                for c in range(0, s.channels, LANES):
                    at, size = _at(s, t, c), softplus(_step_size(s, own, chosen, t, c))
                    store(dt, at, size)
                    store(drive, at, size * load_tile(x, at))
            _scan(s, own, chosen, dt, drive, out)
            _gate(s, xz, b, out, y)
            for at in range(0, s.time * s.selected, LANES):
                store(selected, b * s.time * s.selected + at, load(chosen, at))


@jit
def _carry(s, A, chosen, dt, drive, n, c, first, last, h):  # type: ignore[no-untyped-def]
    """Take four states through a segment."""
    for t in range(first, last):
        at = _at(s, t, c)
        decay = exp2(repeated(load(dt, at)) * A)
        h = decay * h + repeated(load(drive, at)) * spread(chosen, t * s.selected + n, 1)
    return h


@jit
def _remember(s, A, chosen, dt, drive, n, c, first, last, h, states, decays, out):  # type: ignore[no-untyped-def]
    """Take four states through a segment, write down all of them and their decays, and add C . h to the outputs."""
    store(states, 0, h)
    for t in range(first, last):
        at, B, C = _at(s, t, c), t * s.selected + n, t * s.selected + s.states + n
        decay = exp2(repeated(load(dt, at)) * A)
        h = decay * h + repeated(load(drive, at)) * spread(chosen, B, 1)
        store(decays, (t - first) * TILE, decay)
        store(states, (t - first + 1) * TILE, h)
        store(out, at, load(out, at) + folded(h * spread(chosen, C, 1)))


@jit
def _return(  # type: ignore[no-untyped-def]
    s, A, chosen, dt, drive, n, c, first, last, dh, dA, states, decays, d_out, d_drive, d_dt, d_B, d_C
):  # fmt: skip
    """Take gradients of four states and of their A back through a segment.

    Adds to those of drive and of dt (by ln 2), and, for each channel of a vector on its own, of B and C.
    """
    h = load_tile(states, (last - first) * TILE)
    for back in range(last - first):
        t = last - 1 - back
        at, B, C, place = _at(s, t, c), t * s.selected + n, t * s.selected + s.states + n, (t - first) * TILE
        up, before = repeated(load(d_out, at)), load_tile(states, place)
        dh = dh + up * spread(chosen, C, 1)
        store(d_C, t * TILE, load_tile(d_C, t * TILE) + up * h)
        store(d_B, t * TILE, load_tile(d_B, t * TILE) + dh * repeated(load(drive, at)))
        store(d_drive, at, load(d_drive, at) + folded(dh * spread(chosen, B, 1)))
        dh = dh * load_tile(decays, place)
        d_exponent = dh * before
        store(d_dt, at, load(d_dt, at) + folded(d_exponent * A))
        dA = dA + d_exponent * repeated(load(dt, at))
        h = before
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
            place = (s.A + n) * s.channels + c
            A, dA = load_rows(own, place, s.channels), load_rows(total, place, s.channels)
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
                    _remember(s, A, chosen, dt, drive, n, c, first, last, h, states, decays, out)
                    dh, dA = _return(
                        s, A, chosen, dt, drive, n, c, first, last, dh, dA, states, decays, d_out, d_drive, d_dt,
                        d_B, d_C,
                    )  # fmt: skip
            store_rows(total, place, s.channels, dA)
        for t in range(s.time):
            store_sums(d_chosen, t * s.selected + n, load_tile(d_B, t * TILE))
            store_sums(d_chosen, t * s.selected + s.states + n, load_tile(d_C, t * TILE))


@jit
def _add_outer(s, factors, first, count, x, total, row):  # type: ignore[no-untyped-def]
    """total[row + i, c] += sum_t factors[t, first + i] x[t, c], four i and two vectors of c at a time."""
    for i in range(0, count, GROUP):
        for c in range(0, s.channels, 2 * LANES):
            place, on = (row + i) * s.channels + c, min(LANES, s.channels - LANES - c)  # none: the last one twice
            one, two = load_rows(total, place, s.channels), load_rows(total, place + on, s.channels)
            for t in range(s.time):
                each = spread(factors, t * s.selected + first + i, 1)
                one += each * repeated(load(x, _at(s, t, c)))
                two += each * repeated(load(x, _at(s, t, c + on)))
            store_rows(total, place, s.channels, one)
            store_rows(total, place + on, s.channels, two)


@jit
def _low_rank_back(s, own, d_delta, d_chosen):  # type: ignore[no-untyped-def]
    """d_chosen[t, r] = sum_c W_dt[r, c] d_delta[t, c] for the low rank of dt, four r at a time."""
    for t in range(s.time):
        for r in range(0, s.rank, GROUP):
            found = zeros()
            for c in range(0, s.channels, LANES):
                weight = load_rows(own, (s.dt_weight + r) * s.channels + c, s.channels)
                found += repeated(load(d_delta, _at(s, t, c))) * weight
            store_sums(d_chosen, t * s.selected + 2 * s.states + r, found)


@jit
def _convolve_back(s, own, xz, past, d_x, after, sequence, d_xz, total):  # type: ignore[no-untyped-def]
    """Fill the convolved half of d_xz, add to the sums of the taps and of the bias.

    ``d_x`` is the gradient of what the activation was given; in ``after`` rows of zeros follow a piece of it.
    """
    for first in range(0, s.time, s.length):
        _take_in(s, xz, sequence, first, past)
        for c in range(0, s.channels, LANES):
            for t in range(s.length):
                store(after, _of_piece(s, t, c), load(d_x, _at(s, first + t, c)))
            bias_place = (s.conv + s.taps) * s.channels + c
            d_bias = load(total, bias_place)
            for t in range(s.length):
                d_bias += load(after, _of_piece(s, t, c))
            store(total, bias_place, d_bias)
            for k in range(0, s.taps, GROUP):
                place = (s.conv + k) * s.channels + c
                found = load_rows(total, place, s.channels)
                for t in range(s.length):
                    found += load_tile(past, _of_piece(s, t + k, c)) * repeated(load(after, _of_piece(s, t, c)))
                store_rows(total, place, s.channels, found)
        for t in range(s.length):
            for c in range(0, s.channels, LANES):
                found = zeros()
                for k in range(0, s.taps, GROUP):
                    taps = load_rows(own, (s.conv + k) * s.channels + c, s.channels)
                    found += taps * load_rows(after, _of_piece(s, t + s.taps - 1 - k, c), -LANES)
                store(d_xz, _input(s, sequence, first + t) + c, folded(found))


@jit
def _begin(s, own, past, xz, dy, sequence, x, slope, out, d_out, d_xz):  # type: ignore[no-untyped-def]
    """What the convolution gives and its slope, D x, and the gate's gradients but for what it is multiplied with."""
    for first in range(0, s.time, s.length):
        _take_in(s, xz, sequence, first, past)
        for t in range(s.length):
            for c in range(0, s.channels, LANES):
                at, before = _at(s, first + t, c), _convolved(s, own, past, t, c)
                on = sigmoid(before)
                convolved = before * on
                store(x, at, convolved)
                store(slope, at, on + convolved * (F(1.0) - on))
                store(out, at, convolved * load(own, s.D * s.channels + c))
    for t in range(s.time):
        for c in range(0, s.channels, LANES):
            at, gate = _at(s, t, c), _input(s, sequence, t) + s.channels + c
            z, dy_t = load(xz, gate), load(dy, _output(s, sequence, t) + c)
            on = sigmoid(z)
            d_out_t = dy_t * z * on
            store(d_out, at, d_out_t)
            store(d_xz, gate, on * dy_t + d_out_t * (F(1.0) - on))


@jit
def _open(s, own, chosen, x, dt, drive, opening):  # type: ignore[no-untyped-def]
    """Step sizes, what they drive, and the slope of their softplus."""
    for t in range(0, s.tokens, GROUP):
        for c in range(0, s.channels, LANES):
            at, (size, slope) = _at(s, t, c), softplus_and_slope(_step_size(s, own, chosen, t, c))
            store(dt, at, size)
            store(opening, at, slope)
            store(drive, at, size * load_tile(x, at))


@jit
def _close(s, own, x, dt, opening, out, d_out, d_drive, d_dt, sequence, d_xz, d_x, total):  # type: ignore[no-untyped-def]
    """Gradients of the gate, of D, and of x and of the step sizes as far as the scan goes; ``d_dt`` becomes theirs."""
    for c in range(0, s.channels, LANES):
        D, dD = load(own, s.D * s.channels + c), load(total, s.D * s.channels + c)
        d_bias = load(total, s.dt_bias * s.channels + c)
        for t in range(s.time):
            at, gate = _at(s, t, c), _input(s, sequence, t) + s.channels + c
            store(d_xz, gate, load(d_xz, gate) * load(out, at))
            dD += load(d_out, at) * load(x, at)
            store(d_x, at, load(d_out, at) * D + load(d_drive, at) * load(dt, at))
            d_delta = (load(d_dt, at) * LN2 + load(d_drive, at) * load(x, at)) * load(opening, at)
            d_bias += d_delta
            store(d_dt, at, d_delta)
        store(total, s.D * s.channels + c, dD)
        store(total, s.dt_bias * s.channels + c, d_bias)


@jit
def _select_back(s, own, d_chosen, slope, d_x):  # type: ignore[no-untyped-def]
    """Add what was selected to the gradient of x, and turn it into that of what the activation was given.

    Two vectors of channels at a time.
    """
    for t in range(0, s.tokens, GROUP):
        for c in range(0, s.channels, 2 * LANES):
            on = min(LANES, s.channels - LANES - c)  # none: the last one twice
            at, other = _at(s, t, c), _at(s, t, c + on)
            one, two = load_tile(d_x, at), load_tile(d_x, other)
            for p in range(2 * s.states + s.rank):
                each, weight = spread(d_chosen, t * s.selected + p, s.selected), p * s.channels + c
                one += each * repeated(load(own, weight))
                two += each * repeated(load(own, weight + on))
            one, two = one * load_tile(slope, at), two * load_tile(slope, other)
            store(d_x, at, one)
            store(d_x, other, two)


@parallel
def backward(dy, xz, constants, selected, s, members, batch, d_xz, sums, workers):  # type: ignore[no-untyped-def]
    """Fill ``d_xz``, add up ``sums`` (chunk, row and channel)."""
    rows, of_piece = s.channels // LANES * s.column, s.channels // LANES * s.piece
    segments = -(-s.length // SEGMENT)
    each, chunks = batch // members, len(sums) // members
    for worker in numba.prange(workers):
        past, after = scratch(of_piece), scratch(of_piece)
        chosen, d_chosen, d_x = scratch(s.tokens * s.selected), scratch(s.tokens * s.selected), scratch(rows)
        x, slope, dt, drive, opening = scratch(rows), scratch(rows), scratch(rows), scratch(rows), scratch(rows)
        out, d_out, d_drive, d_dt = scratch(rows), scratch(rows), scratch(rows), scratch(rows)
        starts, states, decays = scratch(segments * TILE), scratch((SEGMENT + 1) * TILE), scratch(SEGMENT * TILE)
        d_B, d_C = scratch(s.time * TILE), scratch(s.time * TILE)
        for chunk in range(worker * len(sums) // workers, (worker + 1) * len(sums) // workers):
            member, part = chunk // chunks, chunk % chunks
            own, total = constants[member], sums[chunk]
            for b in range(member * each + part * each // chunks, member * each + (part + 1) * each // chunks):
                for at in range(0, s.time * s.selected, LANES):
                    store(chosen, at, load(selected, b * s.time * s.selected + at))
                _begin(s, own, past, xz, dy, b, x, slope, out, d_out, d_xz)
                _open(s, own, chosen, x, dt, drive, opening)
                d_drive[:], d_dt[:] = F(0.0), F(0.0)
                _scan_back(
                    s, own, chosen, dt, drive, d_out, out, d_drive, d_dt, d_chosen, total, starts, states, decays,
                    d_B, d_C,
                )  # fmt: skip
                _close(s, own, x, dt, opening, out, d_out, d_drive, d_dt, b, d_xz, d_x, total)
                _low_rank_back(s, own, d_dt, d_chosen)
                _add_outer(s, chosen, 2 * s.states, s.rank, d_dt, total, s.dt_weight)
                _add_outer(s, d_chosen, 0, 2 * s.states + s.rank, x, total, 0)
                _select_back(s, own, d_chosen, slope, d_x)
                _convolve_back(s, own, xz, past, d_x, after, b, d_xz, total)
