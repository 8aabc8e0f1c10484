"""The Numba kernels of :mod:`scaling.ops.mamba_inner`.

Parameters and the sums of their gradients come as rows of channels: W_x (rank and twice the states), W_dt (rank),
A / ln 2 (states), the taps, bias of the convolution, D, bias of the step sizes. Sequences are dealt with one by one;
those of one member of a population follow those of another.
"""

import numba
import numpy as np

from scaling.ops._vector_math import FLAGS, F, exp2, sigmoid, softplus

BLOCK = 64
"""Most channels whose history the backward pass keeps at once, chosen to stay in a core's own cache."""

SEGMENT = 64
"""Most tokens whose history it keeps at once; a longer sequence is gone through once more to find where each starts."""

LN2 = F(np.log(2.0))

jit = numba.njit(fastmath=FLAGS, error_model="numpy", cache=True)
parallel = numba.njit(parallel=True, fastmath=FLAGS, error_model="numpy", cache=True)


@numba.njit(cache=True)
def _places(rank, states, count):  # type: ignore[no-untyped-def]
    """The first rows of W_dt, A, the taps and the vectors."""
    dt = rank + 2 * states
    return dt, dt + rank, dt + rank + states, count - 3


@jit
def _convolve(xz, taps, bias, before):  # type: ignore[no-untyped-def]
    """The causal convolution of one sequence, before its activation; the usual four taps in one pass."""
    count, channels = taps.shape
    rest = len(xz)
    if count == 4:
        rest = min(3, rest)
        tap_0, tap_1, tap_2, tap_3 = taps[0], taps[1], taps[2], taps[3]
        for t in range(3, len(xz)):
            x_0, x_1, x_2, x_3, out = xz[t - 3], xz[t - 2], xz[t - 1], xz[t], before[t]
            for c in range(channels):
                out[c] = bias[c] + tap_0[c] * x_0[c] + tap_1[c] * x_1[c] + tap_2[c] * x_2[c] + tap_3[c] * x_3[c]
    for t in range(rest):
        out = before[t]
        out[:] = bias
        for k in range(max(0, count - 1 - t), count):
            source, tap = xz[t - count + 1 + k], taps[k]
            for c in range(channels):
                out[c] += tap[c] * source[c]


@jit
def _convolve_back(xz, taps, d_before, d_xz, d_taps):  # type: ignore[no-untyped-def]
    """Fill the first half of ``d_xz``, add to ``d_taps`` (taps, then bias); the usual four taps in two passes."""
    count, channels = taps.shape
    time, begin = len(xz), 0
    if count == 4:
        begin = max(0, time - 3)
        tap_0, tap_1, tap_2, tap_3 = taps[0], taps[1], taps[2], taps[3]
        d_0, d_1, d_2, d_3, d_bias = d_taps[0], d_taps[1], d_taps[2], d_taps[3], d_taps[4]
        for t in range(begin):
            out, source = d_xz[t], xz[t]
            up_0, up_1, up_2, up_3 = d_before[t + 3], d_before[t + 2], d_before[t + 1], d_before[t]
            for c in range(channels):
                out[c] = tap_0[c] * up_0[c] + tap_1[c] * up_1[c] + tap_2[c] * up_2[c] + tap_3[c] * up_3[c]
                d_bias[c] += up_3[c]
            for c in range(channels):
                d_0[c] += source[c] * up_0[c]
                d_1[c] += source[c] * up_1[c]
                d_2[c] += source[c] * up_2[c]
                d_3[c] += source[c] * up_3[c]
    for t in range(begin, time):
        out, source, d_bias, d_here = d_xz[t], xz[t], d_taps[count], d_before[t]
        for c in range(channels):
            out[c] = F(0.0)
            d_bias[c] += d_here[c]
        for k in range(max(0, t + count - time), count):
            tap, d_tap, above = taps[k], d_taps[k], d_before[t + count - 1 - k]
            for c in range(channels):
                out[c] += tap[c] * above[c]
                d_tap[c] += source[c] * above[c]


@jit
def _add_inner(x, weights, width, out):  # type: ignore[no-untyped-def]
    """out[t, p] += sum_c x[t, c] weights[p, c], four tokens at a time, so that a weight is loaded once for four."""
    time, whole = len(x), len(x) - len(x) % 4
    for t in range(0, whole, 4):
        x_0, x_1, x_2, x_3 = x[t], x[t + 1], x[t + 2], x[t + 3]
        for p in range(len(weights)):
            weight = weights[p]
            s_0, s_1, s_2, s_3 = F(0.0), F(0.0), F(0.0), F(0.0)
            for c in range(width):
                s_0 += weight[c] * x_0[c]
                s_1 += weight[c] * x_1[c]
                s_2 += weight[c] * x_2[c]
                s_3 += weight[c] * x_3[c]
            out[t, p] += s_0
            out[t + 1, p] += s_1
            out[t + 2, p] += s_2
            out[t + 3, p] += s_3
    for t in range(whole, time):
        x_t = x[t]
        for p in range(len(weights)):
            weight = weights[p]
            s = F(0.0)
            for c in range(width):
                s += weight[c] * x_t[c]
            out[t, p] += s


@jit
def _add_rows(factors, rows, out):  # type: ignore[no-untyped-def]
    """Add sum_i factors[i] rows[i], four rows at a time, so that a sum is loaded once for four."""
    count, whole, width = len(rows), len(rows) - len(rows) % 4, len(out)
    for i in range(0, whole, 4):
        f_0, f_1, f_2, f_3 = factors[i], factors[i + 1], factors[i + 2], factors[i + 3]
        x_0, x_1, x_2, x_3 = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
        for c in range(width):
            out[c] += f_0 * x_0[c] + f_1 * x_1[c] + f_2 * x_2[c] + f_3 * x_3[c]
    for i in range(whole, count):
        f_0, x_0 = factors[i], rows[i]
        for c in range(width):
            out[c] += f_0 * x_0[c]


@parallel
def forward(xz, constants, rank, states, chosen, y):  # type: ignore[no-untyped-def]
    """Fill ``chosen``, which comes as zeros, and ``y``."""
    batch, time, channels = y.shape
    in_B, in_C = rank, rank + states
    in_dt, in_A, in_taps, in_vectors = _places(rank, states, constants.shape[1])
    for b in numba.prange(batch):
        own = constants[b // (batch // len(constants))]
        x, h = np.empty((time, channels), np.float32), np.zeros((states, channels), np.float32)
        dt, drive = np.empty(channels, np.float32), np.empty(channels, np.float32)
        _convolve(xz[b], own[in_taps:in_vectors], own[in_vectors], x)
        for t in range(time):
            x_t = x[t]
            for c in range(channels):
                x_t[c] *= sigmoid(x_t[c])
        _add_inner(x, own[:in_dt], channels, chosen[b])
        D, dt_bias, dt_weight = own[in_vectors + 1], own[in_vectors + 2], own[in_dt:in_A]
        for t in range(time):
            selected, x_t, out, z = chosen[b, t], x[t], y[b, t], xz[b, t, channels:]
            dt[:] = dt_bias
            _add_rows(selected[:rank], dt_weight, dt)
            for c in range(channels):
                dt[c] = softplus(dt[c])
                drive[c] = dt[c] * x_t[c]
                out[c] = D[c] * x_t[c]
            for n in range(states):
                B_n, C_n, A_n, h_n = selected[in_B + n], selected[in_C + n], own[in_A + n], h[n]
                for c in range(channels):
                    h_n[c] = exp2(dt[c] * A_n[c]) * h_n[c] + drive[c] * B_n
                    out[c] += C_n * h_n[c]
            for c in range(channels):
                out[c] *= z[c] * sigmoid(z[c])


@jit
def _carry(x, dt, chosen, in_B, A, first, width, lo, hi, h):  # type: ignore[no-untyped-def]
    """Take the states of a block of channels through a segment."""
    drive = np.empty(width, np.float32)
    for t in range(lo, hi):
        dt_t, x_t = dt[t], x[t, first : first + width]
        for c in range(width):
            drive[c] = dt_t[c] * x_t[c]
        for n in range(len(A)):
            B_n, A_n, h_n = chosen[t, in_B + n], A[n], h[n]
            for c in range(width):
                h_n[c] = exp2(dt_t[c] * A_n[c]) * h_n[c] + drive[c] * B_n


@jit
def _remember(x, dt, chosen, in_B, in_C, A, D, first, width, lo, hi, h, decay, out):  # type: ignore[no-untyped-def]
    """All states of a block of channels in a segment, of which ``h[0]`` is the one before it, and the outputs."""
    drive = np.empty(width, np.float32)
    for t in range(lo, hi):
        dt_t, x_t, out_t = dt[t], x[t, first : first + width], out[t, first : first + width]
        for c in range(width):
            drive[c] = dt_t[c] * x_t[c]
            out_t[c] = D[c] * x_t[c]
        for n in range(len(A)):
            B_n, C_n, A_n = chosen[t, in_B + n], chosen[t, in_C + n], A[n]
            h_before, h_n, decay_n = h[t - lo, n], h[t - lo + 1, n], decay[t - lo, n]
            for c in range(width):
                decay_n[c] = exp2(dt_t[c] * A_n[c])
                h_n[c] = decay_n[c] * h_before[c] + drive[c] * B_n
                out_t[c] += C_n * h_n[c]


@jit
def _scan_back(  # type: ignore[no-untyped-def]
    dy, xz, x, dt, chosen, in_B, in_C, A, D, first, width, lo, hi, h, decay, dh, dx, d_xz, d_delta, d_chosen, dA, dD
):  # fmt: skip
    """Back through a segment of a block of channels.

    Given the outputs in ``dx`` and, in ``dh``, what comes back from later tokens; dx, d_xz of the gate and d_delta (as
    yet by dt) are filled, d_chosen, dA (by A ln 2) and dD added to.
    """
    channels, last = x.shape[1], first + width
    d_out, drive = np.empty(width, np.float32), np.empty(width, np.float32)
    d_drive, d_dt = np.empty(width, np.float32), np.empty(width, np.float32)
    for t in range(hi - 1, lo - 1, -1):
        dy_t, x_t, dx_t, dt_t, d_delta_t = dy[t, first:last], x[t, first:last], dx[t, first:last], dt[t], d_delta[t]
        z, dz = xz[t, channels + first : channels + last], d_xz[t, channels + first : channels + last]
        for c in range(width):
            s = sigmoid(z[c])
            dz[c] = dy_t[c] * dx_t[c] * s * (F(1.0) + z[c] * (F(1.0) - s))
            d_out[c] = dy_t[c] * z[c] * s
            dD[c] += d_out[c] * x_t[c]
            drive[c] = dt_t[c] * x_t[c]
            d_drive[c] = F(0.0)
            d_dt[c] = F(0.0)
        for n in range(len(A)):
            B_n, C_n, A_n = chosen[t, in_B + n], chosen[t, in_C + n], A[n]
            h_before, h_n, decay_n, dh_n, dA_n = h[t - lo, n], h[t - lo + 1, n], decay[t - lo, n], dh[n], dA[n]
            dB_n, dC_n = F(0.0), F(0.0)
            for c in range(width):
                dh_c = dh_n[c] + d_out[c] * C_n
                dC_n += d_out[c] * h_n[c]
                dB_n += dh_c * drive[c]
                d_drive[c] += dh_c * B_n
                dh_n[c] = dh_c * decay_n[c]
                d_exponent = dh_n[c] * h_before[c]
                d_dt[c] += d_exponent * A_n[c]
                dA_n[c] += d_exponent * dt_t[c]
            d_chosen[t, in_B + n] += dB_n
            d_chosen[t, in_C + n] += dC_n
        for c in range(width):
            dx_t[c] = d_out[c] * D[c] + d_drive[c] * dt_t[c]
            d_delta_t[c] = LN2 * d_dt[c] + d_drive[c] * x_t[c]


@parallel
def backward(dy, xz, constants, chosen, rank, states, d_xz, sums, workers):  # type: ignore[no-untyped-def]  # noqa: C901 - one kernel
    """Fill ``d_xz``, add up ``sums`` (chunk, row, channel); states are found again, a block of channels at a time."""
    batch, time, channels = dy.shape
    in_B, in_C = rank, rank + states
    in_dt, in_A, in_taps, in_vectors = _places(rank, states, constants.shape[1])
    block, segment = min(BLOCK, channels), min(SEGMENT, time)
    segments = -(-time // segment)
    each, chunks = batch // len(constants), len(sums) // len(constants)
    for worker in numba.prange(workers):
        slope, x = np.empty((time, channels), np.float32), np.empty((time, channels), np.float32)
        dx, d_chosen = np.empty((time, channels), np.float32), np.empty((time, in_dt), np.float32)
        delta, dt = np.empty((time, block), np.float32), np.empty((time, block), np.float32)
        d_delta, dt_weight = np.empty((time, block), np.float32), np.empty((rank, block), np.float32)
        A, dA = np.empty((states, block), np.float32), np.empty((states, block), np.float32)
        h, decay = np.empty((segment + 1, states, block), np.float32), np.empty((segment, states, block), np.float32)
        starts, dh = np.empty((segments, states, block), np.float32), np.empty((states, block), np.float32)
        for chunk in range(worker, len(sums), workers):
            member, part = chunk // chunks, chunk % chunks
            own, total = constants[member], sums[chunk]
            for b in range(member * each + part * each // chunks, member * each + (part + 1) * each // chunks):
                _convolve(xz[b], own[in_taps:in_vectors], own[in_vectors], slope)
                for t in range(time):
                    x_t, slope_t = x[t], slope[t]
                    for c in range(channels):
                        s = sigmoid(slope_t[c])
                        x_t[c] = slope_t[c] * s
                        slope_t[c] = s * (F(1.0) + slope_t[c] * (F(1.0) - s))
                d_chosen[:] = F(0.0)
                for first in range(0, channels, block):
                    last = min(first + block, channels)
                    width = last - first
                    D, dt_bias = own[in_vectors + 1, first:last], own[in_vectors + 2, first:last]
                    dD, d_bias = total[in_vectors + 1, first:last], total[in_vectors + 2, first:last]
                    for r in range(rank):
                        dt_weight[r, :width] = own[in_dt + r, first:last]
                    for n in range(states):
                        A[n, :width] = own[in_A + n, first:last]
                    for t in range(time):
                        delta_t, dt_t = delta[t, :width], dt[t]
                        delta_t[:] = dt_bias
                        _add_rows(chosen[b, t, :rank], dt_weight, delta_t)
                        for c in range(width):
                            dt_t[c] = softplus(delta_t[c])
                    dA[:], dh[:], h[0] = F(0.0), F(0.0), F(0.0)
                    for at in range(segments - 1):
                        starts[at] = h[0]
                        _carry(x, dt, chosen[b], in_B, A, first, width, at * segment, (at + 1) * segment, h[0])
                    starts[segments - 1] = h[0]
                    for back in range(segments):
                        at = segments - 1 - back
                        lo, hi = at * segment, min((at + 1) * segment, time)
                        h[0] = starts[at]
                        _remember(x, dt, chosen[b], in_B, in_C, A, D, first, width, lo, hi, h, decay, dx)
                        _scan_back(
                            dy[b], xz[b], x, dt, chosen[b], in_B, in_C, A, D, first, width, lo, hi, h, decay, dh,
                            dx, d_xz[b], d_delta, d_chosen, dA, dD
                        )  # fmt: skip
                    for n in range(states):
                        total[in_A + n, first:last] += dA[n, :width]
                    for t in range(time):
                        delta_t, d_delta_t = delta[t], d_delta[t]
                        for c in range(width):
                            d_delta_t[c] *= sigmoid(delta_t[c])
                            d_bias[c] += d_delta_t[c]
                    _add_inner(d_delta, dt_weight, width, d_chosen)
                    for r in range(rank):
                        _add_rows(chosen[b, :, r], d_delta, total[in_dt + r, first:last])
                for t in range(time):
                    dx_t, slope_t = dx[t], slope[t]
                    _add_rows(d_chosen[t], own[:in_dt], dx_t)
                    for c in range(channels):
                        slope_t[c] *= dx_t[c]
                for p in range(in_dt):
                    _add_rows(d_chosen[:, p], x, total[p])
                _convolve_back(xz[b], own[in_taps:in_vectors], slope, d_xz[b], total[in_taps : in_vectors + 1])
