"""The selective scan of Mamba (Gu & Dao 2023, Algorithm 2 and Equation 2; Delta through softplus, output gated).

    dt[t] = softplus(delta[t] + delta_bias)
    h[t]  = exp(dt[t] A) h[t-1] + dt[t] B[t] u[t]          per channel, a state vector
    y[t]  = (C[t] . h[t] + D u[t]) silu(z[t])

Names are those of mamba-ssm's ``selective_scan_fn`` with ``delta_softplus=True``; the layout here is
(batch, time, channel), the one in which projections leave it.
"""

import functools
from collections.abc import Callable

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from scaling.ops._rows import array, rows, threads_of_torch
from scaling.ops._vector_math import FLAGS, F, exp, sigmoid, softplus

BLOCK = 64
"""Most channels whose whole history the backward pass keeps at once, chosen to stay in a core's own cache."""

CHUNKS = 32
"""Groups of sequences that sum parameter gradients on their own: a constant, so that sums do not depend on threads."""


def selective_scan_ref(
    u: Float[Tensor, "batch time channel"],
    delta: Float[Tensor, "batch time channel"],
    A: Float[Tensor, "channel state"],
    B: Float[Tensor, "batch time state"],
    C: Float[Tensor, "batch time state"],
    D: Float[Tensor, " channel"],
    z: Float[Tensor, "batch time channel"],
    delta_bias: Float[Tensor, " channel"],
) -> Float[Tensor, "batch time channel"]:
    """The scan as the equations say it, through whole (batch, time, channel, state) tensors."""
    dt = functional.softplus(delta + delta_bias)
    decay = torch.exp(torch.einsum("btc,cn->btcn", dt, A))
    drive = torch.einsum("btc,btn,btc->btcn", dt, B, u)
    h = torch.zeros_like(drive[:, 0])
    outputs = []
    for t in range(u.shape[1]):
        h = decay[:, t] * h + drive[:, t]
        outputs.append(torch.einsum("bcn,bn->bc", h, C[:, t]))
    return (torch.stack(outputs, dim=1) + u * D) * functional.silu(z)


def selective_scan(
    u: Float[Tensor, "batch time channel"],
    delta: Float[Tensor, "batch time channel"],
    A: Float[Tensor, "channel state"],
    B: Float[Tensor, "batch time state"],
    C: Float[Tensor, "batch time state"],
    D: Float[Tensor, " channel"],
    z: Float[Tensor, "batch time channel"],
    delta_bias: Float[Tensor, " channel"],
) -> Float[Tensor, "batch time channel"]:
    """The scan by the best kernel at hand: Numba on a CPU, mamba-ssm's on CUDA, else the reference."""
    kernel = kernel_name(u.device.type, u.dtype)
    if kernel == "numba":
        return torch.ops.scaling.selective_scan(u, delta, A, B, C, D, z, delta_bias)
    if kernel == "mamba_ssm":
        return _on_cuda(u, delta, A, B, C, D, z, delta_bias)
    return selective_scan_ref(u, delta, A, B, C, D, z, delta_bias)


def kernel_name(device: str, dtype: torch.dtype = torch.float32) -> str:
    """Which implementation serves tensors on this kind of device: ``numba``, ``mamba_ssm`` or ``reference``."""
    if device == "cpu" and dtype == torch.float32:
        return "numba"
    return "mamba_ssm" if device == "cuda" and _mamba_ssm() is not None else "reference"


@functools.cache
def _mamba_ssm() -> Callable[..., Tensor] | None:
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # optional extra: cuda
    except ImportError:
        return None
    return selective_scan_fn


def _on_cuda(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    scan = _mamba_ssm()
    assert scan is not None
    over_time = [x.transpose(1, 2).contiguous() for x in (u, delta, B, C, z)]
    u, delta, B, C, z = over_time
    return scan(u, delta, A, B, C, D, z=z, delta_bias=delta_bias, delta_softplus=True).transpose(1, 2)


@torch.library.custom_op("scaling::selective_scan", mutates_args=())
def _selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    batch, time, channels = u.shape
    y = u.new_empty(batch, time, channels)
    streams = [item for x in (u, delta, B, C, z) for item in rows(x)]
    threads_of_torch()
    constants = (array(A.t().contiguous()), array(D), array(delta_bias))
    _forward(*streams, *constants, batch, time, array(y.view(-1, channels)))
    return y


@_selective_scan.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor) -> Tensor:
    return u.new_empty(u.shape)


@torch.library.custom_op("scaling::selective_scan_backward", mutates_args=())
def _selective_scan_backward(
    dy: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, time, channels = u.shape
    states = A.shape[1]
    du, d_delta, dz = (u.new_empty(batch * time, channels) for _ in range(3))
    dB, dC = (u.new_zeros(batch * time, states) for _ in range(2))
    chunks = min(batch, CHUNKS)
    dA, constants = u.new_zeros(chunks, states, channels), u.new_zeros(chunks, 2, channels)
    streams = [item for x in (dy, u, delta, B, C, z) for item in rows(x)]
    threads_of_torch()
    parameters = (array(A.t().contiguous()), array(D), array(delta_bias))
    _backward(*streams, *parameters, batch, time, *map(array, (du, d_delta, dB, dC, dz, dA, constants)))
    dD, d_bias = constants.sum(0)
    shape = (batch, time, -1)
    by_stream = [x.view(shape) for x in (du, d_delta, dB, dC, dz)]
    return (
        *by_stream[:2],
        dA.sum(0).t().clone(memory_format=torch.contiguous_format),
        *by_stream[2:4],
        dD.clone(),
        by_stream[4],
        d_bias.clone(),
    )


@_selective_scan_backward.register_fake
def _(
    dy: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return tuple(x.new_empty(x.shape) for x in (u, delta, A, B, C, D, z, delta_bias))  # type: ignore[return-value]


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # signature fixed by torch.library
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, dy):  # type: ignore[no-untyped-def]
    return torch.ops.scaling.selective_scan_backward(dy, *ctx.saved_tensors)


torch.library.register_autograd("scaling::selective_scan", _differentiate, setup_context=_save)


@numba.njit(parallel=True, fastmath=FLAGS, error_model="numpy", cache=True)
def _forward(  # type: ignore[no-untyped-def]
    u, u_step, delta, delta_step, B, B_step, C, C_step, z, z_step, A, D, delta_bias, batch, time, y
):
    states, channels = A.shape
    for b in numba.prange(batch):
        h = np.zeros((states, channels), np.float32)
        dt, drive = np.empty(channels, np.float32), np.empty(channels, np.float32)
        for t in range(time):
            row = b * time + t
            u_row, z_row = u[row * u_step : row * u_step + channels], z[row * z_step : row * z_step + channels]
            delta_row, out = delta[row * delta_step : row * delta_step + channels], y[row]
            for c in range(channels):
                dt[c] = softplus(delta_row[c] + delta_bias[c])
                drive[c] = dt[c] * u_row[c]
                out[c] = D[c] * u_row[c]
            for n in range(states):
                B_n, C_n, A_n, h_n = B[row * B_step + n], C[row * C_step + n], A[n], h[n]
                for c in range(channels):
                    h_n[c] = exp(dt[c] * A_n[c]) * h_n[c] + drive[c] * B_n
                    out[c] += C_n * h_n[c]
            for c in range(channels):
                out[c] *= z_row[c] * sigmoid(z_row[c])


@numba.njit(parallel=True, fastmath=FLAGS, error_model="numpy", cache=True)
def _backward(  # type: ignore[no-untyped-def]  # noqa: C901 - one kernel: calls would break its vector loops
    dy, dy_step, u, u_step, delta, delta_step, B, B_step, C, C_step, z, z_step, A, D, delta_bias, batch, time,
    du, d_delta, dB, dC, dz, dA, constants
):  # fmt: skip
    """Recompute the states of one block of channels, then walk back through them; nothing is kept in main memory."""
    states, channels = A.shape
    chunks, block = len(dA), min(BLOCK, channels)
    for chunk in numba.prange(chunks):
        h = np.zeros((time + 1, states, block), np.float32)
        decay = np.empty((time, states, block), np.float32)
        dt, out = np.empty((time, block), np.float32), np.empty((time, block), np.float32)
        dh = np.empty((states, block), np.float32)
        d_out, drive, d_drive = np.empty(block, np.float32), np.empty(block, np.float32), np.empty(block, np.float32)
        d_dt = np.empty(block, np.float32)
        dD, d_bias = constants[chunk, 0], constants[chunk, 1]
        for b in range(chunk * batch // chunks, (chunk + 1) * batch // chunks):
            for first in range(0, channels, block):
                width = min(block, channels - first)
                D_block, bias_block = D[first : first + width], delta_bias[first : first + width]
                dD_block, d_bias_block = dD[first : first + width], d_bias[first : first + width]
                for t in range(time):
                    row = b * time + t
                    u_row = u[row * u_step + first : row * u_step + first + width]
                    delta_row = delta[row * delta_step + first : row * delta_step + first + width]
                    dt_t, out_t = dt[t], out[t]
                    for c in range(width):
                        dt_t[c] = softplus(delta_row[c] + bias_block[c])
                        drive[c] = dt_t[c] * u_row[c]
                        out_t[c] = D_block[c] * u_row[c]
                    for n in range(states):
                        B_n, C_n, A_n = B[row * B_step + n], C[row * C_step + n], A[n, first : first + width]
                        h_before, h_n, decay_n = h[t, n], h[t + 1, n], decay[t, n]
                        for c in range(width):
                            decay_n[c] = exp(dt_t[c] * A_n[c])
                            h_n[c] = decay_n[c] * h_before[c] + drive[c] * B_n
                            out_t[c] += C_n * h_n[c]
                dh[:] = F(0.0)
                for step in range(time):
                    t = time - 1 - step
                    row = b * time + t
                    u_row = u[row * u_step + first : row * u_step + first + width]
                    z_row = z[row * z_step + first : row * z_step + first + width]
                    dy_row = dy[row * dy_step + first : row * dy_step + first + width]
                    delta_row = delta[row * delta_step + first : row * delta_step + first + width]
                    du_row, dz_row = du[row, first : first + width], dz[row, first : first + width]
                    d_delta_row, dt_t, out_t = d_delta[row, first : first + width], dt[t], out[t]
                    for c in range(width):
                        s = sigmoid(z_row[c])
                        dz_row[c] = dy_row[c] * out_t[c] * s * (F(1.0) + z_row[c] * (F(1.0) - s))
                        d_out[c] = dy_row[c] * z_row[c] * s
                        dD_block[c] += d_out[c] * u_row[c]
                        drive[c] = dt_t[c] * u_row[c]
                        d_drive[c] = F(0.0)
                        d_dt[c] = F(0.0)
                    for n in range(states):
                        B_n, C_n, A_n = B[row * B_step + n], C[row * C_step + n], A[n, first : first + width]
                        h_before, h_n, decay_n, dh_n = h[t, n], h[t + 1, n], decay[t, n], dh[n]
                        dA_n = dA[chunk, n, first : first + width]
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
                        dB[row, n] += dB_n
                        dC[row, n] += dC_n
                    for c in range(width):
                        du_row[c] = d_out[c] * D_block[c] + d_drive[c] * dt_t[c]
                        d_delta_row[c] = (d_dt[c] + d_drive[c] * u_row[c]) * sigmoid(delta_row[c] + bias_block[c])
                        d_bias_block[c] += d_delta_row[c]
