"""Where the kernels of :mod:`scaling.ops.mamba_inner` want a block's parameters: as rows of channels, among zeros."""

from typing import NamedTuple

import numba
import numpy as np

from scaling.ops._vectors import GROUP, LANES, LINE

LN2 = np.float32(np.log(2.0))

jit = numba.njit(error_model="numpy", cache=True)


class Sizes(NamedTuple):
    """Numbers of a block, and the first row of each parameter among the constants and the sums of gradients."""

    time: int
    length: int
    """Tokens of a piece, a divisor of ``time``."""
    tokens: int
    """``time`` to a multiple of ``GROUP``."""
    channels: int
    """A multiple of ``LANES``."""
    column: int
    """Numbers from one vector of channels of all tokens to the next: an odd number of the cache's lines."""
    piece: int
    """The same for a piece, with the tokens before or after it that a convolution sees."""
    states: int
    """A multiple of ``GROUP``, as are rank and taps."""
    rank: int
    taps: int
    """The last is for the token itself."""
    selected: int
    """Rows of W_x, from the first on: for B, C and the low rank of dt, then zeros to a multiple of ``LANES``."""
    dt_weight: int
    A: int
    """By ln 2."""
    conv: int
    """The taps and the bias."""
    D: int
    dt_bias: int
    row: int
    """Channels of all blocks that lie side by side; a token has so many outputs, and twice so many inputs."""
    first: int
    """Channels before those of the block."""


def sizes_of(time: int, length: int, channels: int, states: int, rank: int, taps: int, row: int, first: int) -> Sizes:
    """The sizes for a block of any numbers among others."""
    channels = up(channels, LANES)
    states, rank, taps = (up(count, GROUP) for count in (states, rank, taps))
    selected = up(2 * states + rank, LANES)
    A = selected + rank
    D = A + states + taps + 1
    return Sizes(
        time=time,
        length=length,
        tokens=up(time, GROUP),
        channels=channels,
        column=up(time, GROUP) * LANES + LINE,
        piece=up(length + taps, GROUP) * LANES + LINE,
        states=states,
        rank=rank,
        taps=taps,
        selected=selected,
        dt_weight=selected,
        A=A,
        conv=A + states,
        D=D,
        dt_bias=D + 1,
        row=row,
        first=first,
    )


def up(count: int, step: int) -> int:
    """The next multiple of the step."""
    return -(-count // step) * step


@jit
def lay_out(s, conv_weight, conv_bias, x_weight, dt_weight, A_log, D, dt_bias, constants, mixing):  # type: ignore[no-untyped-def]
    """Put each member's parameters where the kernels want them, among zeros."""
    for member in range(len(constants)):
        own, channels = constants[member].reshape(-1, s.channels), D.shape[1]
        rank, states, taps = dt_weight.shape[2], A_log.shape[2], conv_weight.shape[2]
        for n in range(states):
            own[n, :channels] = x_weight[member, rank + n]
            own[s.states + n, :channels] = x_weight[member, rank + states + n]
            own[s.A + n, :channels] = np.exp(A_log[member, :, n]) / -LN2
        for r in range(rank):
            own[2 * s.states + r, :channels] = x_weight[member, r]
            own[s.dt_weight + r, :channels] = dt_weight[member, :, r]
        for k in range(taps):
            own[s.conv + s.taps - taps + k, :channels] = conv_weight[member, :, k]
        own[s.conv + s.taps, :channels] = conv_bias[member]
        own[s.D, :channels] = D[member]
        own[s.dt_bias, :channels] = dt_bias[member]
        size = s.channels * s.selected
        mixing[member * size : (member + 1) * size].reshape(s.channels, s.selected)[:] = own[: s.selected].T


@jit
def distribute(s, sums, constants, conv_weight, conv_bias, x_weight, dt_weight, A_log, D, dt_bias):  # type: ignore[no-untyped-def]
    """Add up the sums of each member's chunks, and put the gradients where its parameters come from."""
    for member in range(len(sums)):
        total, channels = sums[member, 0].reshape(-1, s.channels), D.shape[1]
        own = constants[member].reshape(-1, s.channels)
        for chunk in range(1, sums.shape[1]):
            total += sums[member, chunk].reshape(-1, s.channels)
        rank, states, taps = dt_weight.shape[2], A_log.shape[2], conv_weight.shape[2]
        for n in range(states):
            x_weight[member, rank + n] = total[n, :channels]
            x_weight[member, rank + states + n] = total[s.states + n, :channels]
            A_log[member, :, n] = total[s.A + n, :channels] * own[s.A + n, :channels] * LN2
        for r in range(rank):
            x_weight[member, r] = total[2 * s.states + r, :channels]
            dt_weight[member, :, r] = total[s.dt_weight + r, :channels]
        for k in range(taps):
            conv_weight[member, :, k] = total[s.conv + s.taps - taps + k, :channels]
        conv_bias[member] = total[s.conv + s.taps, :channels]
        D[member] = total[s.D, :channels]
        dt_bias[member] = total[s.dt_bias, :channels]
