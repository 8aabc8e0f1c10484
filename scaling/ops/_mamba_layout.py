"""Where the kernels of :mod:`scaling.ops.mamba_block` want a block's parameters: as rows of channels, among zeros.

For each vector of channels all rows follow one another, as :mod:`scaling.ops._products` has its columns.
"""

import functools
from typing import NamedTuple

import numba
import numpy as np

from scaling.ops._norm import lay_out_norm
from scaling.ops._products import turn
from scaling.ops._vectors import GROUP, LANES, LINE

LN2 = np.float32(np.log(2.0))

jit = numba.njit(error_model="numpy", cache=True)


class Sizes(NamedTuple):
    """Numbers of a block, and the first row of each parameter among its constants and the sums of their gradients."""

    time: int
    length: int
    """Tokens of a piece, a divisor of ``time``."""
    tokens: int
    """``time`` to a multiple of ``GROUP``."""
    width: int
    outputs: int
    """``width`` to a multiple of ``LANES``."""
    row: int
    """Numbers from one token's input or output to the next."""
    channels: int
    """A multiple of ``LANES``."""
    column: int
    """Numbers from one vector of channels of all tokens to the next: an odd number of the cache's lines."""
    piece: int
    """The same for a piece, with the tokens before or after it that a convolution sees."""
    states: int
    """A multiple of ``GROUP``, as are taps."""
    rank: int
    taps: int
    """The last is for the token itself."""
    selected: int
    """Numbers that a token selects: B, C, and from ``low`` on the low rank of dt; each to a multiple of ``LANES``."""
    low: int
    gate: int
    """W_in, turned: its half for what is convolved begins at row 0, that for the gate here."""
    out: int
    """W_out."""
    select: int
    """W_x."""
    step: int
    """W_dt, turned."""
    weights: int
    """Rows so far, whole vectors of them, which are there once more as columns."""
    A: int
    """By ln 2, turned."""
    conv: int
    """The taps, turned, and the bias."""
    D: int
    dt_bias: int
    panel: int
    """Numbers from one vector of channels of all rows to the next."""
    norm: int
    """Where, behind all rows, weight and bias of the norm begin (:mod:`scaling.ops._norm`)."""
    numbers: int
    """Of constants; without a norm they end where it would begin."""


@functools.cache
def sizes_of(
    time: int, length: int, width: int, channels: int, states: int, rank: int, taps: int, normed: bool
) -> Sizes:
    """The sizes for a block of any numbers."""
    channels, outputs = up(channels, LANES), up(width, LANES)
    states, taps = up(states, GROUP), up(taps, GROUP)
    low = up(2 * states, LANES)
    selected = low + up(rank, LANES)
    step = 3 * outputs + selected
    A = step + up(rank, LANES)
    D = A + states + taps + 1
    norm = channels * (D + 2)
    return Sizes(
        time=time,
        length=length,
        tokens=up(time, GROUP),
        width=width,
        outputs=outputs,
        row=outputs + LINE,
        channels=channels,
        column=up(time, GROUP) * LANES + LINE,
        piece=up(length + taps, GROUP) * LANES + LINE,
        states=states,
        rank=rank,
        taps=taps,
        selected=selected,
        low=low,
        gate=outputs,
        out=2 * outputs,
        select=3 * outputs,
        step=step,
        weights=A,
        A=A,
        conv=A + states,
        D=D,
        dt_bias=D + 1,
        panel=(D + 2) * LANES,
        norm=norm,
        numbers=norm + 3 * outputs * normed,
    )


def up(count: int, step: int) -> int:
    """The next multiple of the step."""
    return -(-count // step) * step


@jit
def lay_out(s, parameters, gamma, beta, constants, turned):  # type: ignore[no-untyped-def]
    """Put each member's parameters where the kernels want them, among zeros."""
    in_weight, conv_weight, conv_bias, x_weight, dt_weight, A_log, D, dt_bias, out_weight = parameters
    channels, width = D.shape[1], out_weight.shape[1]
    rank, states, taps = dt_weight.shape[2], A_log.shape[2], conv_weight.shape[2]
    for member in range(len(constants)):
        for c in range(channels):
            at = c // LANES * s.panel + c % LANES
            own = constants[member, at : (c // LANES + 1) * s.panel : LANES]
            for i in range(width):
                own[i] = in_weight[member, c, i]
                own[s.gate + i] = in_weight[member, channels + c, i]
                own[s.out + i] = out_weight[member, i, c]
            for n in range(states):
                own[s.select + n] = x_weight[member, rank + n, c]
                own[s.select + s.states + n] = x_weight[member, rank + states + n, c]
                own[s.A + n] = np.exp(A_log[member, c, n]) / -LN2
            for r in range(rank):
                own[s.select + s.low + r] = x_weight[member, r, c]
                own[s.step + r] = dt_weight[member, c, r]
            for k in range(taps):
                own[s.conv + s.taps - taps + k] = conv_weight[member, c, k]
            own[s.conv + s.taps], own[s.D], own[s.dt_bias] = conv_bias[member, c], D[member, c], dt_bias[member, c]
        turn(constants[member], s.panel, s.weights, s.channels, turned[member])
        if s.numbers > s.norm:
            lay_out_norm(gamma[member], beta[member], s.outputs, constants[member], s.norm)


@jit
def distribute(s, sums, constants, parameters, gamma, beta):  # type: ignore[no-untyped-def]
    """Add up the sums of each member's chunks, and put the gradients where its parameters come from.

    Those of the norm are added to what is there.
    """
    in_weight, conv_weight, conv_bias, x_weight, dt_weight, A_log, D, dt_bias, out_weight = parameters
    channels, width = D.shape[1], out_weight.shape[1]
    rank, states, taps = dt_weight.shape[2], A_log.shape[2], conv_weight.shape[2]
    for member in range(len(sums)):
        for chunk in range(1, sums.shape[1]):
            sums[member, 0] += sums[member, chunk]
        for c in range(channels):
            at = c // LANES * s.panel + c % LANES
            total = sums[member, 0, at : (c // LANES + 1) * s.panel : LANES]
            for i in range(width):
                in_weight[member, c, i] = total[i]
                in_weight[member, channels + c, i] = total[s.gate + i]
                out_weight[member, i, c] = total[s.out + i]
            for n in range(states):
                x_weight[member, rank + n, c] = total[s.select + n]
                x_weight[member, rank + states + n, c] = total[s.select + s.states + n]
                A_log[member, c, n] = total[s.A + n] * constants[member, at + (s.A + n) * LANES] * LN2
            for r in range(rank):
                x_weight[member, r, c] = total[s.select + s.low + r]
                dt_weight[member, c, r] = total[s.step + r]
            for k in range(taps):
                conv_weight[member, c, k] = total[s.conv + s.taps - taps + k]
            conv_bias[member, c], dt_bias[member, c] = total[s.conv + s.taps], total[s.dt_bias]
            D[member, c] = total[s.D]
        if s.numbers > s.norm:
            for i in range(width):
                gamma[member, i] += sums[member, 0, s.norm + i]
                beta[member, i] += sums[member, 0, s.norm + s.outputs + i]
