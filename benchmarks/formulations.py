"""Other formulations of what a Mamba block computes between its outer projections, with the signature of ours."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.modules import instead
from scaling.ops.causal_conv import causal_conv

Inner = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""As :func:`scaling.ops.mamba_inner.mamba_inner`."""
Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""As :func:`scaling.ops.selective_scan.selective_scan`."""

INTERFACE = "mamba_ssm.ops.selective_scan_interface"
COMPILED = ("selective_scan_cuda", "mamba_ssm.ops.triton.layer_norm")
"""What mamba-ssm's module asks for when it is imported, and its reference does without."""
HOW_TO_GET = (
    "it installs on CUDA only; get its source with `MAMBA_SKIP_CUDA_BUILD=TRUE pip download --no-deps "
    "--no-build-isolation --no-binary mamba-ssm mamba-ssm`, unpack it and give `--mamba-ssm FOLDER`"
)


class Missing(Exception):
    """A rival that is not there; the message says how to get it."""


def around(scan: Scan) -> Inner:
    """The whole formulation, PyTorch's but for the scan."""

    def inner(
        xz: Tensor,
        conv_weight: Tensor,
        conv_bias: Tensor,
        x_weight: Tensor,
        dt_weight: Tensor,
        A_log: Tensor,
        D: Tensor,
        dt_bias: Tensor,
    ) -> Tensor:
        x, z = xz.chunk(2, dim=-1)
        x = causal_conv(x, conv_weight.squeeze(1), conv_bias)
        rank, states = dt_weight.shape[1], A_log.shape[1]
        low_rank, B, C = functional.linear(x, x_weight).split([rank, states, states], dim=-1)
        return scan(x, functional.linear(low_rank, dt_weight), -A_log.exp(), B, C, D, z, dt_bias)

    return inner


def running_state_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """The scan as a loop over time in which no tensor holds time and state at once."""
    dt = functional.softplus(delta + delta_bias)
    drive = dt * u
    h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    outputs = []
    for t in range(u.shape[1]):
        h = torch.exp(dt[:, t, :, None] * A) * h + drive[:, t, :, None] * B[:, t, None]
        outputs.append((h @ C[:, t, :, None]).squeeze(-1))
    return (torch.stack(outputs, dim=1) + u * D) * functional.silu(z)


def mamba_ssm_scan(folder: Path | None = None) -> Scan:
    """mamba-ssm's own ``selective_scan_ref``, from its installation or from an unpacked source.

    Raises:
        Missing: there is none.

    """
    reference = _module(folder).selective_scan_ref

    def scan(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
    ) -> Tensor:
        u, delta, B, C, z = (x.transpose(1, 2) for x in (u, delta, B, C, z))
        y: Tensor = reference(u, delta, A, B, C, D, z=z, delta_bias=delta_bias, delta_softplus=True)
        return y.transpose(1, 2)

    return scan


def _module(folder: Path | None) -> ModuleType:
    try:
        return importlib.import_module(INTERFACE) if folder is None else _unpacked(folder)
    except ModuleNotFoundError as error:
        if error.name == "einops":
            raise Missing("not installed: `pip install einops`, which mamba-ssm needs") from error
        raise Missing(f"not in that folder: {error}" if folder else f"not installed: {HOW_TO_GET}") from error
    except ImportError as error:
        raise Missing(f"cannot be imported: {error}") from error


def _unpacked(folder: Path) -> ModuleType:
    """The module alone: neither the package's own imports nor what is compiled for CUDA."""
    package = ModuleType("mamba_ssm")
    package.__path__ = [str(folder / "mamba_ssm")]
    compiled = {name: ModuleType(name) for name in COMPILED}
    compiled["mamba_ssm.ops.triton.layer_norm"].__dict__["_layer_norm_fwd"] = None
    with instead({"mamba_ssm": package, **compiled}):
        return importlib.import_module(INTERFACE)
