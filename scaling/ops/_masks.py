"""Dropout's factors as Numba computes them: a function of a seed and of an entry's number, by Philox4x32-10.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", Section 3.2, with the multipliers and increments of
its Table 2. Nothing is drawn in order, so any part of a mask can be had on its own, by any number of threads.
"""

import numba
import numpy as np

from scaling.ops._jit import jit, parallel
from scaling.ops._vectors import LANES, load, scratch, store

SIDE = 64
"""Counters of a chunk. Each gives four numbers, which are ``SIDE`` apart, so that a vector holds one of each."""

CHUNK = 4 * SIDE

BLOCK = 4096
"""Entries that a worker takes at a time."""

ROUNDS = 10
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
INCREMENTS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


@jit
def _bits(seed, chunk, bits):  # type: ignore[no-untyped-def]
    """Fill 32 random bits for each entry of a chunk."""
    for c in range(SIDE):
        counter = np.uint64(chunk) * np.uint64(SIDE) + np.uint64(c)
        a, b, third, fourth = counter & LOW, counter >> HALF, np.uint64(0), np.uint64(0)
        key, other = np.uint64(seed) & LOW, np.uint64(seed) >> HALF
        for _ in range(ROUNDS):
            first, second = MULTIPLIERS[0] * a, MULTIPLIERS[1] * third
            a, b, third, fourth = (
                (second >> HALF) ^ b ^ key,
                second & LOW,
                (first >> HALF) ^ fourth ^ other,
                first & LOW,
            )
            key, other = (key + INCREMENTS[0]) & LOW, (other + INCREMENTS[1]) & LOW
        bits[c], bits[SIDE + c], bits[2 * SIDE + c], bits[3 * SIDE + c] = a, b, third, fourth


@jit
def factors(seed, threshold, scale, begin, count, out):  # type: ignore[no-untyped-def]
    """Find what the entries from number ``begin`` on are multiplied with: ``scale`` or, below the threshold, zero.

    They lie in ``out``, which has room for two chunks more, from the place on that comes back.
    """
    first, last = begin // CHUNK, (begin + count - 1) // CHUNK
    bits = np.empty(CHUNK, np.uint32)
    for chunk in range(first, last + 1):
        own = out[(chunk - first) * CHUNK : (chunk - first + 1) * CHUNK]
        if threshold == 0:
            own[:] = scale
        else:
            _bits(seed, chunk, bits)
            for i in range(CHUNK):
                own[i] = scale if bits[i] >= threshold else np.float32(0.0)
    return begin - first * CHUNK


@parallel
def drop(x, seeds, threshold, scale, begin, y, workers):  # type: ignore[no-untyped-def]
    """Fill ``y`` with the products; ``x`` has an equal part for each seed, whose first entry has number ``begin``."""
    each = len(x) // len(seeds)
    blocks = -(-each // BLOCK)
    total = len(seeds) * blocks
    for worker in numba.prange(workers):
        found = scratch(BLOCK + 2 * CHUNK)
        for block in range(worker * total // workers, (worker + 1) * total // workers):
            member, first = block // blocks, block % blocks * BLOCK
            count, place = min(BLOCK, each - first), member * each + first
            skipped = factors(seeds[member], threshold, scale, begin + first, count, found)
            whole = count - count % LANES
            for i in range(0, whole, LANES):
                store(y, place + i, load(x, place + i) * load(found, skipped + i))
            for i in range(whole, count):
                y[place + i] = x[place + i] * found[skipped + i]
