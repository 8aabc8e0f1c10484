"""Layer normalisation of rows inside Numba kernels (Ba et al. 2016), four tokens at a time.

    hat = (x - mean) / sqrt(variance + eps);   y = gamma hat + beta

From a place on, ``norm`` holds gamma, beta, and ones where there is a number, each ``outputs`` long: rows have zeros
behind their numbers. Gradients of gamma and beta are added to ``sums`` from the same place on.
"""

import numpy as np

from scaling.ops._jit import jit
from scaling.ops._vectors import (
    GROUP,
    LANES,
    F,
    folded,
    load,
    load_rows,
    of_member,
    repeated,
    spread,
    store,
    store_rows,
    store_sums,
    zeros,
)


@jit
def normalise(rows, row, tokens, width, outputs, norm, at, eps, hat, rates):  # type: ignore[no-untyped-def]
    """Rows become y; fill ``hat`` and one over the root for each token."""
    for t in range(0, tokens, GROUP):
        total = zeros()
        for i in range(0, outputs, LANES):
            total += load_rows(rows, t * row + i, row)
        store_sums(rates, t, total)
        for k in range(GROUP):
            rates[t + k] /= F(width)
        mean, total = spread(rates, t, 1), zeros()
        for i in range(0, outputs, LANES):
            apart = (load_rows(rows, t * row + i, row) - mean) * repeated(load(norm, at + 2 * outputs + i))
            store_rows(hat, t * row + i, row, apart)
            total += apart * apart
        store_sums(rates, t, total)
        for k in range(GROUP):
            rates[t + k] = F(1.0) / np.sqrt(rates[t + k] / F(width) + eps)
        rate = spread(rates, t, 1)
        for i in range(0, outputs, LANES):
            scaled = load_rows(hat, t * row + i, row) * rate
            store_rows(hat, t * row + i, row, scaled)
            y = scaled * repeated(load(norm, at + i)) + repeated(load(norm, at + outputs + i))
            store_rows(rows, t * row + i, row, y)


@jit
def normalise_back(d_rows, row, tokens, width, outputs, norm, at, hat, rates, means, sums):  # type: ignore[no-untyped-def]
    """Gradients of y, zero for tokens beyond the last, become those of x; ``means`` has room for twice four numbers."""
    for t in range(0, tokens, GROUP):
        one, two = zeros(), zeros()
        for i in range(0, outputs, LANES):
            d, scaled = load_rows(d_rows, t * row + i, row), load_rows(hat, t * row + i, row)
            store(sums, at + i, load(sums, at + i) + folded(d * scaled))
            store(sums, at + outputs + i, load(sums, at + outputs + i) + folded(d))
            d = d * repeated(load(norm, at + i))
            one += d
            two += d * scaled
            store_rows(d_rows, t * row + i, row, d)
        store_sums(means, 0, one)
        store_sums(means, GROUP, two)
        for k in range(2 * GROUP):
            means[k] /= F(width)
        mean, along, rate = spread(means, 0, 1), spread(means, GROUP, 1), spread(rates, t, 1)
        for i in range(0, outputs, LANES):
            d = load_rows(d_rows, t * row + i, row) - mean - load_rows(hat, t * row + i, row) * along
            store_rows(d_rows, t * row + i, row, d * rate)


@jit
def lay_out_norm(addresses, member, width, outputs, norm, at):  # type: ignore[no-untyped-def]
    """Put a member's weight and bias where :func:`normalise` wants them, among zeros."""
    gamma, beta = of_member(addresses[0], width, member), of_member(addresses[1], width, member)
    norm[at : at + 3 * outputs] = 0.0
    for i in range(width):
        norm[at + i], norm[at + outputs + i], norm[at + 2 * outputs + i] = gamma[i], beta[i], F(1.0)


@jit
def distribute_norm(addresses, member, width, outputs, sums, at):  # type: ignore[no-untyped-def]
    """Put a member's gradients where weight and bias come from."""
    gamma, beta = of_member(addresses[0], width, member), of_member(addresses[1], width, member)
    for i in range(width):
        gamma[i], beta[i] = sums[at + i], sums[at + outputs + i]
