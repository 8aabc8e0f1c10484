"""The Mamba block (Gu & Dao 2023, Figure 3 and Algorithm 2), with mamba-ssm's parameter names.

    x, z = W_in u;  x = silu(conv(x));  (dt, B, C) = W_x x;  y = scan(x, W_dt dt, A, B, C, D, z);  out = W_out y

A state_dict of ``mamba_ssm.Mamba(width)`` fits and the other way round. The step sizes start log-uniform in
[DT_MIN, DT_MAX]; nothing may re-initialise ``dt_proj.bias`` afterwards, which is how the public Decision Mamba codes
lose their memory: zeroed, it gives a half-life of one token.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from scaling.ops.causal_conv import causal_conv
from scaling.ops.selective_scan import selective_scan
from scaling.spec import ModelSpec

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4
"""mamba-ssm's range of initial step sizes."""


class Mamba(nn.Module):
    """One block; every output depends on its own and earlier tokens only."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        inner, rank = spec.expand * spec.width, dt_rank(spec)
        self.in_proj = nn.Linear(spec.width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, spec.d_conv, groups=inner)
        self.x_proj = nn.Linear(inner, rank + 2 * spec.d_state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, spec.d_state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, spec.width, bias=False)
        self.split = [rank, spec.d_state, spec.d_state]
        self._initialise_steps()

    @torch.no_grad()
    def _initialise_steps(self) -> None:
        rank = self.split[0]
        self.dt_proj.weight.uniform_(-(rank**-0.5), rank**-0.5)
        log_dt = torch.empty_like(self.dt_proj.bias).uniform_(math.log(DT_MIN), math.log(DT_MAX))
        dt = log_dt.exp().clamp(min=DT_FLOOR)
        self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus of this is dt

    def forward(self, u: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """The block's output, to be added to the residual stream; conv and scan run in single precision at least."""
        assert self.conv1d.bias is not None
        full_precision = torch.autocast(u.device.type, enabled=False)
        x, z = _at_least_single(self.in_proj(u)).chunk(2, dim=-1)
        with full_precision:
            x = causal_conv(x, self.conv1d.weight.squeeze(1), self.conv1d.bias)
        low_rank, B, C = self.x_proj(x).split(self.split, dim=-1)
        delta = _at_least_single(functional.linear(low_rank, self.dt_proj.weight))
        B, C = _at_least_single(B), _at_least_single(C)
        with full_precision:
            y = selective_scan(x, delta, -self.A_log.exp(), B, C, self.D, z, self.dt_proj.bias)
        return self.out_proj(y)


def _at_least_single(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def dt_rank(spec: ModelSpec) -> int:
    """mamba-ssm's default rank of the step-size projection."""
    return math.ceil(spec.width / 16)


def count(spec: ModelSpec) -> int:
    """Parameters of one block."""
    d, inner, rank = spec.width, spec.expand * spec.width, dt_rank(spec)
    projections = d * 2 * inner + inner * (rank + 2 * spec.d_state) + (rank * inner + inner) + inner * d
    return projections + inner * (spec.d_conv + 1) + inner * spec.d_state + inner


def flops(spec: ModelSpec) -> int:
    """Forward floating-point operations of one block for one token.

    Two per weight of a projection or tap. The scan does seven per channel and state: dt A, exp, decay h, drive B,
    their sum, C h and its sum. Activations, gate and skip are left out, being of the order of the channels.
    """
    d, inner, rank = spec.width, spec.expand * spec.width, dt_rank(spec)
    projections = d * 2 * inner + inner * (rank + 2 * spec.d_state) + rank * inner + inner * d
    return 2 * projections + 2 * inner * spec.d_conv + 7 * inner * spec.d_state
