"""The Numba kernels of :mod:`scaling.ops.mamba_inner`, written with vectors of channels.

A sequence is dealt with on its own: what it needs lies in a worker's scratch, as rows of channels, one for each token,
with rows of zeros around them. A tile is a vector of channels for four states, four tokens or four taps. All arrays
are flat. W_x is there twice: ``constants`` hold its rows of channels, ``mixing`` its columns.
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
    spread,
    store,
    store_rows,
    store_sums,
    zeros,
)

SEGMENT = 64
"""Most tokens whose states the backward pass keeps at once; a longer sequence is gone through once more to find where
each segment starts."""

TILE = GROUP * LANES

LN2 = F(np.log(2.0))

jit = numba.njit(error_model="numpy", cache=True)
parallel = numba.njit(parallel=True, error_model="numpy", cache=True)


@jit
def _take_in(s, xz, sequence, past):  # type: ignore[no-untyped-def]
    """Copy what is convolved behind the rows of zeros that stand for tokens before the first."""
    for t in range(s.time):
        row, source = (t + s.taps - 1) * s.channels, (sequence * s.time + t) * 2 * s.channels
        for c in range(0, s.channels, LANES):
            store(past, row + c, load(xz, source + c))


@jit
def _convolved(s, own, past, t, c):  # type: ignore[no-untyped-def]
    """A token of the causal convolution, before its activation."""
    total = load(own, (s.conv + s.taps) * s.channels + c)
    for k in range(0, s.taps, GROUP):
        taps = load_rows(own, (s.conv + k) * s.channels + c, s.channels)
        total = total + folded(load_rows(past, (t + k) * s.channels + c, s.channels) * taps)
    return total


@jit
def _select(s, x, mixing, begin, chosen):  # type: ignore[no-untyped-def]
    """chosen[t, p] = sum_c W_x[p, c] x[t, c], four tokens and a vector of p at a time."""
    for t in range(0, s.tokens, GROUP):
        for p in range(0, s.selected, LANES):
            total = zeros()
            for c in range(s.channels):
                total += spread(x, t * s.channels + c, s.channels) * repeated(load(mixing, begin + c * s.selected + p))
            store_rows(chosen, t * s.selected + p, s.selected, total)


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
            A, h = load_rows(own, (s.A + n) * s.channels + c, s.channels), zeros()
            for t in range(s.time):
                at, B, C = t * s.channels + c, t * s.selected + n, t * s.selected + s.states + n
                h = exp2(repeated(load(dt, at)) * A) * h + repeated(load(drive, at)) * spread(chosen, B, 1)
                store(out, at, load(out, at) + folded(h * spread(chosen, C, 1)))


@parallel
def forward(xz, constants, mixing, s, members, batch, y, selected, workers):  # type: ignore[no-untyped-def]
    """Fill the results and what was selected."""
    rows = s.tokens * s.channels
    for worker in numba.prange(workers):
        past, chosen = scratch((s.tokens + s.taps) * s.channels), scratch(s.tokens * s.selected)
        x, dt, drive, out = scratch(rows), scratch(rows), scratch(rows), scratch(rows)
        for b in range(worker * batch // workers, (worker + 1) * batch // workers):
            member = b // (batch // members)
            own = constants[member]
            _take_in(s, xz, b, past)
            for t in range(s.time):
                for c in range(0, s.channels, LANES):
                    before = _convolved(s, own, past, t, c)
                    convolved = before * sigmoid(before)
                    store(x, t * s.channels + c, convolved)
                    store(out, t * s.channels + c, convolved * load(own, s.D * s.channels + c))
            _select(s, x, mixing, member * s.channels * s.selected, chosen)
            for t in range(0, s.tokens, GROUP):
                for c in range(0, s.channels, LANES):
                    at, size = t * s.channels + c, softplus(_step_size(s, own, chosen, t, c))
                    store_rows(dt, at, s.channels, size)
                    store_rows(drive, at, s.channels, size * load_rows(x, at, s.channels))
            _scan(s, own, chosen, dt, drive, out)
            for t in range(s.time):
                for c in range(0, s.channels, LANES):
                    z = load(xz, ((b * s.time + t) * 2 + 1) * s.channels + c)
                    store(y, (b * s.time + t) * s.channels + c, load(out, t * s.channels + c) * z * sigmoid(z))
            for at in range(0, s.time * s.selected, LANES):
                store(selected, b * s.time * s.selected + at, load(chosen, at))


@jit
def _carry(s, A, chosen, dt, drive, n, c, first, last, h):  # type: ignore[no-untyped-def]
    """Take four states through a segment."""
    for t in range(first, last):
        at = t * s.channels + c
        decay = exp2(repeated(load(dt, at)) * A)
        h = decay * h + repeated(load(drive, at)) * spread(chosen, t * s.selected + n, 1)
    return h


@jit
def _remember(s, A, chosen, dt, drive, n, c, first, last, h, states, decays, out):  # type: ignore[no-untyped-def]
    """Take four states through a segment, write down all of them and their decays, and add C . h to the outputs."""
    store(states, 0, h)
    for t in range(first, last):
        at, B, C = t * s.channels + c, t * s.selected + n, t * s.selected + s.states + n
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
        at, B, C, place = t * s.channels + c, t * s.selected + n, t * s.selected + s.states + n, (t - first) * TILE
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
    segments = -(-s.time // SEGMENT)
    for n in range(0, s.states, GROUP):
        d_B[:], d_C[:] = F(0.0), F(0.0)
        for c in range(0, s.channels, LANES):
            place = (s.A + n) * s.channels + c
            A, dA = load_rows(own, place, s.channels), load_rows(total, place, s.channels)
            h, dh = zeros(), zeros()
            for at in range(segments - 1):
                store(starts, at * TILE, h)
                h = _carry(s, A, chosen, dt, drive, n, c, at * SEGMENT, (at + 1) * SEGMENT, h)
            store(starts, (segments - 1) * TILE, h)
            for back in range(segments):
                at = segments - 1 - back
                first, last = at * SEGMENT, min((at + 1) * SEGMENT, s.time)
                h = load_tile(starts, at * TILE)
                _remember(s, A, chosen, dt, drive, n, c, first, last, h, states, decays, out)
                dh, dA = _return(
                    s, A, chosen, dt, drive, n, c, first, last, dh, dA, states, decays, d_out, d_drive, d_dt, d_B, d_C
                )
            store_rows(total, place, s.channels, dA)
        for t in range(s.time):
            store_sums(d_chosen, t * s.selected + n, load_tile(d_B, t * TILE))
            store_sums(d_chosen, t * s.selected + s.states + n, load_tile(d_C, t * TILE))


@jit
def _add_outer(s, factors, first, count, x, total, row):  # type: ignore[no-untyped-def]
    """total[row + i, c] += sum_t factors[t, first + i] x[t, c], four i at a time."""
    for i in range(0, count, GROUP):
        for c in range(0, s.channels, LANES):
            place = (row + i) * s.channels + c
            found = load_rows(total, place, s.channels)
            for t in range(s.time):
                found += spread(factors, t * s.selected + first + i, 1) * repeated(load(x, t * s.channels + c))
            store_rows(total, place, s.channels, found)


@jit
def _low_rank_back(s, own, d_delta, d_chosen):  # type: ignore[no-untyped-def]
    """d_chosen[t, r] = sum_c W_dt[r, c] d_delta[t, c] for the low rank of dt, four r at a time."""
    for t in range(s.time):
        for r in range(0, s.rank, GROUP):
            found = zeros()
            for c in range(0, s.channels, LANES):
                weight = load_rows(own, (s.dt_weight + r) * s.channels + c, s.channels)
                found += repeated(load(d_delta, t * s.channels + c)) * weight
            store_sums(d_chosen, t * s.selected + 2 * s.states + r, found)


@jit
def _convolve_back(s, own, past, d_before, sequence, d_xz, total):  # type: ignore[no-untyped-def]
    """Fill the convolved half of d_xz, add to the sums of the taps and of the bias.

    ``d_before`` is followed by rows of zeros, for tokens after the last.
    """
    for c in range(0, s.channels, LANES):
        bias_place = (s.conv + s.taps) * s.channels + c
        d_bias = load(total, bias_place)
        for t in range(s.time):
            d_bias += load(d_before, t * s.channels + c)
        store(total, bias_place, d_bias)
        for k in range(0, s.taps, GROUP):
            place = (s.conv + k) * s.channels + c
            found = load_rows(total, place, s.channels)
            for t in range(s.time):
                inputs = load_rows(past, (t + k) * s.channels + c, s.channels)
                found += inputs * repeated(load(d_before, t * s.channels + c))
            store_rows(total, place, s.channels, found)
    for t in range(s.time):
        for c in range(0, s.channels, LANES):
            found = zeros()
            for k in range(0, s.taps, GROUP):
                taps = load_rows(own, (s.conv + k) * s.channels + c, s.channels)
                found += taps * load_rows(d_before, (t + s.taps - 1 - k) * s.channels + c, -s.channels)
            store(d_xz, (sequence * s.time + t) * 2 * s.channels + c, folded(found))


@jit
def _begin(s, own, past, xz, dy, sequence, x, slope, out, d_out, d_xz):  # type: ignore[no-untyped-def]
    """What the convolution gives and its slope, D x, and the gate's gradients but for what it is multiplied with."""
    for t in range(s.time):
        for c in range(0, s.channels, LANES):
            at, token = t * s.channels + c, sequence * s.time + t
            before = _convolved(s, own, past, t, c)
            on = sigmoid(before)
            convolved = before * on
            store(x, at, convolved)
            store(slope, at, on + convolved * (F(1.0) - on))
            store(out, at, convolved * load(own, s.D * s.channels + c))
            gate = (token * 2 + 1) * s.channels + c
            z, dy_t = load(xz, gate), load(dy, token * s.channels + c)
            on = sigmoid(z)
            d_out_t = dy_t * z * on
            store(d_out, at, d_out_t)
            store(d_xz, gate, on * dy_t + d_out_t * (F(1.0) - on))


@jit
def _open(s, own, chosen, x, dt, drive, opening):  # type: ignore[no-untyped-def]
    """Step sizes, what they drive, and the slope of their softplus."""
    for t in range(0, s.tokens, GROUP):
        for c in range(0, s.channels, LANES):
            at, delta = t * s.channels + c, _step_size(s, own, chosen, t, c)
            size = softplus(delta)
            store_rows(dt, at, s.channels, size)
            store_rows(opening, at, s.channels, sigmoid(delta))
            store_rows(drive, at, s.channels, size * load_rows(x, at, s.channels))


@jit
def _close(s, own, x, dt, opening, out, d_out, d_drive, d_dt, sequence, d_xz, d_x, total):  # type: ignore[no-untyped-def]
    """Gradients of the gate, of D, and of x and of the step sizes as far as the scan goes; ``d_dt`` becomes theirs."""
    for c in range(0, s.channels, LANES):
        D, dD = load(own, s.D * s.channels + c), load(total, s.D * s.channels + c)
        d_bias = load(total, s.dt_bias * s.channels + c)
        for t in range(s.time):
            at, gate = t * s.channels + c, ((sequence * s.time + t) * 2 + 1) * s.channels + c
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
    """Add what was selected to the gradient of x, and turn it into that of what the activation was given."""
    for t in range(0, s.tokens, GROUP):
        for c in range(0, s.channels, LANES):
            at = t * s.channels + c
            found = load_rows(d_x, at, s.channels)
            for p in range(2 * s.states + s.rank):
                weight = repeated(load(own, p * s.channels + c))
                found += spread(d_chosen, t * s.selected + p, s.selected) * weight
            store_rows(d_x, at, s.channels, found * load_rows(slope, at, s.channels))
    d_x[s.time * s.channels :] = F(0.0)  # a diverging member's NaN must not reach the next sequence


@parallel
def backward(dy, xz, constants, selected, s, members, batch, d_xz, sums, workers):  # type: ignore[no-untyped-def]
    """Fill ``d_xz``, add up ``sums`` (chunk, row and channel)."""
    rows, segments = s.tokens * s.channels, -(-s.time // SEGMENT)
    each, chunks = batch // members, len(sums) // members
    for worker in numba.prange(workers):
        past, d_x = scratch((s.tokens + s.taps) * s.channels), scratch((s.tokens + s.taps) * s.channels)
        chosen, d_chosen = scratch(s.tokens * s.selected), scratch(s.tokens * s.selected)
        x, slope, dt, drive, opening = scratch(rows), scratch(rows), scratch(rows), scratch(rows), scratch(rows)
        out, d_out, d_drive, d_dt = scratch(rows), scratch(rows), scratch(rows), scratch(rows)
        starts, states, decays = scratch(segments * TILE), scratch((SEGMENT + 1) * TILE), scratch(SEGMENT * TILE)
        d_B, d_C = scratch(s.time * TILE), scratch(s.time * TILE)
        for chunk in range(worker * len(sums) // workers, (worker + 1) * len(sums) // workers):
            member, part = chunk // chunks, chunk % chunks
            own, total = constants[member], sums[chunk]
            for b in range(member * each + part * each // chunks, member * each + (part + 1) * each // chunks):
                _take_in(s, xz, b, past)
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
                _convolve_back(s, own, past, d_x, b, d_xz, total)
