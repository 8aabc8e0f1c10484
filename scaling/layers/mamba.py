"""The Mamba block (Gu & Dao 2023, Figure 3 and Algorithm 2), with mamba-ssm's parameter names.

    x, z = W_in u;  x = silu(conv(x));  (dt, B, C) = W_x x;  y = scan(x, W_dt dt, A, B, C, D, z);  out = W_out y

A state_dict of ``mamba_ssm.Mamba(width)`` fits and the other way round. A starts as S4D-real, -1 ... -d_state in
every channel; the step sizes start log-uniform. Nothing may re-initialise ``dt_proj.bias`` afterwards, which is how
the public Decision Mamba codes lose their memory: zeroed, it gives a half-life of one token. ``dt_init: zero_bias``
does that on purpose.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from scaling.ops.causal_conv import causal_conv
from scaling.ops.dropout import NOTHING
from scaling.ops.layers import Form, layers
from scaling.ops.mamba_inner import at_least_single, mamba_inner, selected
from scaling.ops.selective_scan import kernel_name
from scaling.spec import ModelSpec

DT_FLOOR = 1e-4
"""mamba-ssm's smallest initial step size."""


@dataclass(frozen=True, kw_only=True)
class MambaShape:
    """What a block is made of."""

    width: int
    d_state: int
    d_conv: int
    expand: int
    dt_init: str
    dt_min: float
    dt_max: float

    @property
    def inner(self) -> int:
        """Channels inside the block."""
        return self.expand * self.width

    @property
    def rank(self) -> int:
        """mamba-ssm's default rank of the step-size projection."""
        return math.ceil(self.width / 16)


KNOBS = ("d_state", "d_conv", "expand", "dt_init", "dt_min", "dt_max")
"""Fields of the spec that shape a block."""


def shape_of(spec: ModelSpec, local: bool = False) -> MambaShape:
    """The block of the spec; for the local branch, with its overrides."""
    own = {name: getattr(spec, f"local_{name}") if local else None for name in KNOBS}
    values: dict[str, Any] = {name: getattr(spec, name) if own[name] is None else own[name] for name in KNOBS}
    return MambaShape(width=spec.width, **values)


def fields_of(spec: ModelSpec, local: bool = False) -> set[str]:
    """Fields of the spec that decide the shape: each knob's general one, or the local branch's own where it differs."""
    names = set(KNOBS)
    if shape_of(spec, local).dt_init == "zero_bias":
        names -= {"dt_min", "dt_max"}
    if not local:
        return names
    same = {name for name in names if getattr(spec, f"local_{name}") in (None, getattr(spec, name))}
    return same | {f"local_{name}" for name in names - same}


class MambaState(NamedTuple):
    """What a block remembers between tokens."""

    conv: Float[Tensor, "batch inner taps"]
    """The last inputs of the convolution, the newest last."""
    scan: Float[Tensor, "batch inner d_state"]


class Mamba(nn.Module):
    """One block; every output depends on its own and earlier tokens only."""

    def __init__(self, shape: MambaShape) -> None:
        super().__init__()
        inner, rank, width = shape.inner, shape.rank, shape.width
        self.shape = shape
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, shape.d_conv, groups=inner)
        self.x_proj = nn.Linear(inner, rank + 2 * shape.d_state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, shape.d_state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-(rank**-0.5), rank**-0.5)
        self.initialise_last()

    @torch.no_grad()
    def initialise_last(self) -> None:
        """Set the bias that decides the first step sizes; to be called after any other initialisation."""
        bias, shape = self.dt_proj.bias, self.shape
        if shape.dt_init == "zero_bias":
            bias.zero_()
            return
        dt = torch.empty_like(bias).uniform_(math.log(shape.dt_min), math.log(shape.dt_max)).exp().clamp(min=DT_FLOOR)
        bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus of this is dt

    def forward(self, u: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """The block's output, to be added to the residual stream; conv and scan run in single precision at least."""
        if in_one_kernel(u):
            form = Form((u.shape[1],), normed=False)
            return layers(at_least_single(u), form, [NOTHING], self.parameters_in_order())
        return self.out_proj(mamba_inner(at_least_single(self.in_proj(u)), *self.inner_parameters()))

    def plain_blocks(self, tokens: int) -> list["PlainBlock"]:
        """The block itself."""
        return [PlainBlock(self, tokens)]

    def parameters_in_order(self, share: float = 1.0) -> list[Tensor]:
        """All parameters, as :class:`Form` says, for a block whose result is multiplied with ``share``."""
        out_weight = self.out_proj.weight if share == 1.0 else share * self.out_proj.weight
        return [self.in_proj.weight, *self.inner_parameters(), out_weight]

    def inner_parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What is between the two large projections, as :func:`mamba_inner` wants it."""
        conv, dt = self.conv1d, self.dt_proj
        assert conv.bias is not None
        return conv.weight, conv.bias, self.x_proj.weight, dt.weight, self.A_log, self.D, dt.bias

    def step_sizes(self, u: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token inner"]:
        """How far each channel's state moves at each token: softplus(W_dt dt + bias)."""
        assert self.conv1d.bias is not None
        x, _ = at_least_single(self.in_proj(u)).chunk(2, dim=-1)
        delta, _, _ = self._selected(causal_conv(x, self.conv1d.weight.squeeze(1), self.conv1d.bias))
        return functional.softplus(delta + self.dt_proj.bias)

    def _selected(self, x: Float[Tensor, "*batch inner"]) -> tuple[Tensor, Tensor, Tensor]:
        return selected(x, self.x_proj.weight, self.dt_proj.weight, self.shape.d_state)

    def initial_state(self, batch: int) -> MambaState:
        """The state before the first token."""
        zeros = self.A_log.new_zeros
        return MambaState(
            zeros(batch, self.shape.inner, self.shape.d_conv), zeros(batch, self.shape.inner, self.shape.d_state)
        )

    def step(
        self, state: MambaState, u: Float[Tensor, "batch width"]
    ) -> tuple[Float[Tensor, "batch width"], MambaState]:
        """Output for one token, and the state after it: the recurrence that :meth:`forward` unrolls."""
        assert self.conv1d.bias is not None
        x, z = at_least_single(self.in_proj(u)).chunk(2, dim=-1)
        conv = torch.cat([state.conv[..., 1:], x[..., None]], dim=-1)
        x = functional.silu((conv * self.conv1d.weight.squeeze(1)).sum(-1) + self.conv1d.bias)
        delta, B, C = self._selected(x)
        dt = functional.softplus(delta + self.dt_proj.bias)[..., None]
        scan = torch.exp(-self.A_log.exp() * dt) * state.scan + dt * x[..., None] * B[:, None]
        y = ((scan * C[:, None]).sum(-1) + self.D * x) * functional.silu(z)
        return self.out_proj(y), MambaState(conv, scan)


def in_one_kernel(u: Tensor) -> bool:
    """Whether a kernel computes whole blocks: on a CPU, in single precision even where autocast asks for half."""
    return kernel_name(u.device.type, torch.promote_types(u.dtype, torch.float32)) == "numba"


class PlainBlock(NamedTuple):
    """A block that is given all tokens and computes a mixer, or a part of a weighted sum."""

    block: Mamba
    length: int
    """Tokens after which it begins anew, a divisor of their number."""
    share: float = 1.0


def count(shape: MambaShape) -> int:
    """Parameters of one block."""
    d, inner, rank = shape.width, shape.inner, shape.rank
    projections = d * 2 * inner + inner * (rank + 2 * shape.d_state) + (rank * inner + inner) + inner * d
    return projections + inner * (shape.d_conv + 1) + inner * shape.d_state + inner


def flops(shape: MambaShape) -> int:
    """Forward floating-point operations of one block for one token.

    Two per weight of a projection or tap. The scan does seven per channel and state: dt A, exp, decay h, drive B,
    their sum, C h and its sum. Activations, gate and skip are left out, being of the order of the channels.
    """
    return products(shape) + 2 * shape.inner * shape.d_conv + 7 * shape.inner * shape.d_state


def products(shape: MambaShape) -> int:
    """Those of them that are matrix products, whether a kernel of their own computes them or that of the block."""
    d, inner, rank = shape.width, shape.inner, shape.rank
    return 2 * (d * 2 * inner + inner * (rank + 2 * shape.d_state) + rank * inner + inner * d)
