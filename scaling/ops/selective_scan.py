"""The selective scan of Mamba (Gu & Dao 2023, Algorithm 2 and Equation 2; Delta through softplus, output gated).

    dt[t] = softplus(delta[t] + delta_bias)
    h[t]  = exp(dt[t] A) h[t-1] + dt[t] B[t] u[t]          per channel, a state vector
    y[t]  = (C[t] . h[t] + D u[t]) silu(z[t])

Names are those of mamba-ssm's ``selective_scan_fn`` with ``delta_softplus=True``; the layout here is
(batch, time, channel), the one in which projections leave it.
"""

import functools
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


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
    """The scan on its own: mamba-ssm's on CUDA, else the reference."""
    if kernel_name(u.device.type, u.dtype) == "mamba_ssm":
        return _on_cuda(u, delta, A, B, C, D, z, delta_bias)
    return selective_scan_ref(u, delta, A, B, C, D, z, delta_bias)


def kernel_name(device: str, dtype: torch.dtype = torch.float32) -> str:
    """What serves tensors on this kind of device: ``numba``, for all of the block, ``mamba_ssm`` or ``reference``."""
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
