"""Where the kernels want a Mamba block's parameters: as rows of channels, among zeros.

For each vector of channels all rows follow one another, as :mod:`scaling.ops._products` has its columns. All weights
are there once more, turned.
"""

import functools
from typing import NamedTuple

import numpy as np
from numba.np.unsafe.ndarray import to_fixed_tuple

from scaling.ops._jit import jit
from scaling.ops._products import turn
from scaling.ops._vectors import GROUP, LANES, LINE, of_member

LN2 = np.float32(np.log(2.0))

PARAMETERS = 9
"""Of a block, in this order: W_in, taps and bias of the convolution, W_x, W_dt, A_log, D, bias of dt, W_out."""


class Counts(NamedTuple):
    """What a block is made of."""

    width: int
    channels: int
    states: int
    rank: int
    taps: int


class Sizes(NamedTuple):
    """Numbers of a block, and the first row of each parameter among its constants and the sums of their gradients."""

    real_channels: int
    """Channels, states and taps before they are made whole vectors."""
    real_states: int
    real_taps: int
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
    normed: int
    numbers: int
    """Of constants; without a norm they end where it would begin."""


FIELDS = len(Sizes._fields)


@functools.cache
def sizes_of(time: int, length: int, counts: Counts, normed: bool) -> Sizes:
    """The sizes for a block of any numbers."""
    channels, outputs = up(counts.channels, LANES), up(counts.width, LANES)
    states, taps = up(counts.states, GROUP), up(counts.taps, GROUP)
    low = up(2 * states, LANES)
    selected = low + up(counts.rank, LANES)
    step = 3 * outputs + selected
    A = step + up(counts.rank, LANES)
    D = A + states + taps + 1
    norm = channels * (D + 2)
    return Sizes(
        real_channels=counts.channels,
        real_states=counts.states,
        real_taps=counts.taps,
        time=time,
        length=length,
        tokens=up(time, GROUP),
        width=counts.width,
        outputs=outputs,
        row=outputs + LINE,
        channels=channels,
        column=up(time, GROUP) * LANES + LINE,
        piece=up(length + taps, GROUP) * LANES + LINE,
        states=states,
        rank=counts.rank,
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
        normed=int(normed),
        numbers=norm + 3 * outputs * normed,
    )


def up(count: int, step: int) -> int:
    """The next multiple of the step."""
    return -(-count // step) * step


@jit
def sizes_in(row):  # type: ignore[no-untyped-def]
    """Sizes that lie in an array."""
    return Sizes(*to_fixed_tuple(row, FIELDS))


@jit
def _arrays(s, addresses, member):  # type: ignore[no-untyped-def]
    """A member's parameters, or their gradients, the numbers of each one after another."""
    return (
        of_member(addresses[0], 2 * s.real_channels * s.width, member),
        of_member(addresses[1], s.real_channels * s.real_taps, member),
        of_member(addresses[2], s.real_channels, member),
        of_member(addresses[3], (s.rank + 2 * s.real_states) * s.real_channels, member),
        of_member(addresses[4], s.real_channels * s.rank, member),
        of_member(addresses[5], s.real_channels * s.real_states, member),
        of_member(addresses[6], s.real_channels, member),
        of_member(addresses[7], s.real_channels, member),
        of_member(addresses[8], s.width * s.real_channels, member),
    )


@jit
def lay_out(s, addresses, member, c, own, other):  # type: ignore[no-untyped-def]
    """Put a vector of channels of a member's parameters where the kernels want them."""
    in_weight, conv_weight, conv_bias, x_weight, dt_weight, A_log, D, dt_bias, out_weight = _arrays(
        s, addresses, member
    )
    panel = own[c // LANES * s.panel : (c // LANES + 1) * s.panel]
    panel[:] = 0.0
    for lane in range(min(LANES, s.real_channels - c)):
        channel, rows = c + lane, panel[lane::LANES]
        for i in range(s.width):
            rows[i] = in_weight[channel * s.width + i]
            rows[s.gate + i] = in_weight[(s.real_channels + channel) * s.width + i]
            rows[s.out + i] = out_weight[i * s.real_channels + channel]
        for i in range(s.real_states):
            rows[s.select + i] = x_weight[(s.rank + i) * s.real_channels + channel]
            rows[s.select + s.states + i] = x_weight[(s.rank + s.real_states + i) * s.real_channels + channel]
            rows[s.A + i] = np.exp(A_log[channel * s.real_states + i]) / -LN2
        for r in range(s.rank):
            rows[s.select + s.low + r] = x_weight[r * s.real_channels + channel]
            rows[s.step + r] = dt_weight[channel * s.rank + r]
        for k in range(s.real_taps):
            rows[s.conv + s.taps - s.real_taps + k] = conv_weight[channel * s.real_taps + k]
        rows[s.conv + s.taps], rows[s.D], rows[s.dt_bias] = conv_bias[channel], D[channel], dt_bias[channel]
    turn(own, s.panel, s.weights, s.channels, c, other)


@jit
def distribute(s, addresses, member, c, total, own):  # type: ignore[no-untyped-def]
    """Put a vector of channels of a member's gradients where its parameters come from."""
    in_weight, conv_weight, conv_bias, x_weight, dt_weight, A_log, D, dt_bias, out_weight = _arrays(
        s, addresses, member
    )
    begin = c // LANES * s.panel
    for lane in range(min(LANES, s.real_channels - c)):
        channel, rows = c + lane, total[begin + lane : begin + s.panel : LANES]
        for i in range(s.width):
            in_weight[channel * s.width + i] = rows[i]
            in_weight[(s.real_channels + channel) * s.width + i] = rows[s.gate + i]
            out_weight[i * s.real_channels + channel] = rows[s.out + i]
        for i in range(s.real_states):
            x_weight[(s.rank + i) * s.real_channels + channel] = rows[s.select + i]
            x_weight[(s.rank + s.real_states + i) * s.real_channels + channel] = rows[s.select + s.states + i]
            A = own[begin + (s.A + i) * LANES + lane]
            A_log[channel * s.real_states + i] = rows[s.A + i] * A * LN2
        for r in range(s.rank):
            x_weight[r * s.real_channels + channel] = rows[s.select + s.low + r]
            dt_weight[channel * s.rank + r] = rows[s.step + r]
        for k in range(s.real_taps):
            conv_weight[channel * s.real_taps + k] = rows[s.conv + s.taps - s.real_taps + k]
        conv_bias[channel], D[channel], dt_bias[channel] = rows[s.conv + s.taps], rows[s.D], rows[s.dt_bias]
