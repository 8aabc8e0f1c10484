"""The Numba kernels of :mod:`scaling.ops.feed_forward`: all between and after its two products, in place.

Arrays are flat, rows of channels; a member's rows follow those of another. ``bias`` has a row for each member.
"""

import numba
import numpy as np

from scaling.ops._masks import BLOCK, CHUNK, factors
from scaling.ops._vectors import LANES, F, above_zero, at_least, exp, load, scratch, signed, store

jit = numba.njit(error_model="numpy", cache=True)
parallel = numba.njit(parallel=True, error_model="numpy", cache=True)


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
def _activate(h, at, bias, place, is_relu, a, to):  # type: ignore[no-untyped-def]
    """A vector of channels: activated into ``a``, and its slope where it was."""
    x = load(h, at) + load(bias, place)
    value, slope = relu(x) if is_relu else gelu(x)
    store(a, to, value)
    store(h, at, slope)


@parallel
def activate(h, bias, members, channels, is_relu, a, workers):  # type: ignore[no-untyped-def]
    """Fill ``a`` with what is activated; ``h`` becomes the slopes."""
    rows = len(h) // channels
    whole = channels - channels % LANES
    for worker in numba.prange(workers):
        few, few_bias, few_a = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
        for row in range(worker * rows // workers, (worker + 1) * rows // workers):
            at, place = row * channels, row // (rows // members) * channels
            for c in range(0, whole, LANES):
                _activate(h, at + c, bias, place + c, is_relu, a, at + c)
            for c in range(whole, channels):
                few[c - whole], few_bias[c - whole] = h[at + c], bias[place + c]
            if whole < channels:
                _activate(few, 0, few_bias, 0, is_relu, few_a, 0)
            for c in range(whole, channels):
                h[at + c], a[at + c] = few[c - whole], few_a[c - whole]


@parallel
def activate_back(da, slope, members, channels, sums, workers):  # type: ignore[no-untyped-def]
    """``da`` becomes the gradient of what was activated; ``sums`` (chunk and channel) its sum over rows."""
    each, chunks, whole = len(da) // channels // members, len(sums) // channels // members, channels - channels % LANES
    for worker in numba.prange(workers):
        for chunk in range(worker * members * chunks // workers, (worker + 1) * members * chunks // workers):
            member, part = chunk // chunks, chunk % chunks
            for row in range(member * each + part * each // chunks, member * each + (part + 1) * each // chunks):
                at, total = row * channels, chunk * channels
                for c in range(0, whole, LANES):
                    d = load(da, at + c) * load(slope, at + c)
                    store(da, at + c, d)
                    store(sums, total + c, load(sums, total + c) + d)
                for c in range(whole, channels):
                    da[at + c] *= slope[at + c]
                    sums[total + c] += da[at + c]


@jit
def _rows_at_once(channels):  # type: ignore[no-untyped-def]
    return max(1, BLOCK // channels)


@parallel
def finish(y, bias, seeds, threshold, scale, begin, members, channels, workers):  # type: ignore[no-untyped-def]
    """Add the bias, and drop entries."""
    rows, few, whole = len(y) // channels, _rows_at_once(channels), channels - channels % LANES
    each = rows // members
    blocks = -(-each // few)
    for worker in numba.prange(workers):
        found = scratch(few * channels + 2 * CHUNK)
        for block in range(worker * members * blocks // workers, (worker + 1) * members * blocks // workers):
            member, first = block // blocks, block % blocks * few
            count, number = min(few, each - first), begin + first * channels
            skipped = factors(seeds[member], threshold, scale, number, count * channels, found)
            for row in range(count):
                at, factor, place = (
                    (member * each + first + row) * channels,
                    skipped + row * channels,
                    member * channels,
                )
                for c in range(0, whole, LANES):
                    store(y, at + c, (load(y, at + c) + load(bias, place + c)) * load(found, factor + c))
                for c in range(whole, channels):
                    y[at + c] = (y[at + c] + bias[place + c]) * found[factor + c]


@parallel
def finish_back(dy, seeds, threshold, scale, begin, members, channels, d, sums, workers):  # type: ignore[no-untyped-def]
    """Fill ``d`` with the gradient before entries were dropped; ``sums`` (chunk and channel) with its sum over rows."""
    each, chunks, whole = len(dy) // channels // members, len(sums) // channels // members, channels - channels % LANES
    few = _rows_at_once(channels)
    for worker in numba.prange(workers):
        found = scratch(few * channels + 2 * CHUNK)
        for chunk in range(worker * members * chunks // workers, (worker + 1) * members * chunks // workers):
            member, part, total = chunk // chunks, chunk % chunks, chunk * channels
            last = (part + 1) * each // chunks
            for first in range(part * each // chunks, last, few):
                count, number = min(few, last - first), begin + first * channels
                skipped = factors(seeds[member], threshold, scale, number, count * channels, found)
                for row in range(count):
                    at, factor = (member * each + first + row) * channels, skipped + row * channels
                    for c in range(0, whole, LANES):
                        value = load(dy, at + c) * load(found, factor + c)
                        store(d, at + c, value)
                        store(sums, total + c, load(sums, total + c) + value)
                    for c in range(whole, channels):
                        d[at + c] = dy[at + c] * found[factor + c]
                        sums[total + c] += d[at + c]
