"""The selective scan of Mamba (Gu & Dao 2023, Algorithm 2 and Equation 2; Delta through softplus, output gated).

    dt[t] = softplus(delta[t] + delta_bias)
    h[t]  = exp(dt[t] A) h[t-1] + dt[t] B[t] u[t]          per channel, a state vector
    y[t]  = (C[t] . h[t] + D u[t]) silu(z[t])

Names are those of mamba-ssm's ``selective_scan_fn`` with ``delta_softplus=True``; the layout here is
(batch, time, channel), the one in which projections leave it.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from scaling.ops._rows import by_member, signed


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
    """The scan on its own: on CUDA mamba-ssm's or, for members of a population too, Triton's; else the reference."""
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    mapped = any(torch._C._functorch.is_batchedtensor(x) for x in inputs)
    scans = {"mamba_ssm": _on_cuda, "triton": selective_scan_triton}
    return scans.get(kernel_name(u.device.type, u.dtype, mapped=mapped), selective_scan_ref)(*inputs)


def kernel_name(device: str, dtype: torch.dtype = torch.float32, *, mapped: bool = False) -> str:
    """What serves tensors on this kind of device.

    ``numba``, for all of the block, ``mamba_ssm``, over which the members of a population cannot be ``mapped``,
    ``triton`` or ``reference``.
    """
    if device == "cpu" and dtype == torch.float32:
        return "numba"
    if device == "cuda" and not mapped and _mamba_ssm() is not None:
        return "mamba_ssm"
    return "triton" if _triton_serves(device, dtype) else "reference"


def selective_scan_triton(
    u: Float[Tensor, "batch time channel"],
    delta: Float[Tensor, "batch time channel"],
    A: Float[Tensor, "channel state"],
    B: Float[Tensor, "batch time state"],
    C: Float[Tensor, "batch time state"],
    D: Float[Tensor, " channel"],
    z: Float[Tensor, "batch time channel"],
    delta_bias: Float[Tensor, " channel"],
) -> Float[Tensor, "batch time channel"]:
    """The scan in single precision by Triton's kernels: on CUDA, and on a CPU where Triton interprets them."""
    from scaling.ops import _triton_scan  # noqa: F401  # Triton comes with PyTorch's CUDA builds alone

    y: Tensor = _Scan.apply(u, delta, A, B, C, D, z, delta_bias)[0]
    return y


class _Scan(torch.autograd.Function):
    """The result, and states for the way back; mapped over, the members of a population in one call."""

    @staticmethod
    @signed
    def forward(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        y, starts = torch.ops.scaling.selective_scan(*inputs)
        return y, starts

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(output[1], *inputs)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: None) -> tuple[Tensor, ...]:
        starts, *inputs = ctx.saved_tensors
        return tuple(torch.ops.scaling.selective_scan_backward(dy, starts, inputs))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *given: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        u, delta, A, B, C, D, z, bias = by_member(info, in_dims, given)
        u, delta, B, C, z = (x.flatten(0, 1) for x in (u, delta, B, C, z))
        y, starts = _Scan.apply(u, delta, A, B, C, D, z, bias)
        return (y.unflatten(0, (info.batch_size, -1)), starts.unflatten(0, (info.batch_size, -1))), (0, 0)


@functools.cache
def _triton_is_there() -> bool:
    return importlib.util.find_spec("triton") is not None


def _triton_serves(device: str, dtype: torch.dtype) -> bool:
    return device == "cuda" and dtype != torch.float64 and _triton_is_there()


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
