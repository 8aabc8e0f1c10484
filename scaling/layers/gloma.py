"""GLoMa, MambaDM's mixer (Cao et al. 2024): a Mamba over all tokens and one over sub-sequences of them, added.

    fused = a Mamba_1(u) + b Mamba_2(u),   a + b = 2

Each of the two is global or local. The paper's mixer is one of each, with a = b (its Eq. 10).

A local branch cuts the window into sub-sequences of whole timesteps, which start anew every ``subsequence - overlap``
timesteps, counted from the window's first. Each begins with an empty state. Where they overlap, a timestep takes its
output from the one that began first, in which it sees most of the past: with an overlap of ``subsequence - 1`` that
is the last output of the sub-sequence ending there, as in GLAM.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from scaling.errors import UserError
from scaling.layers import mamba
from scaling.layers.mamba import Mamba, MambaShape, MambaState, PlainBlock
from scaling.spec import ModelSpec

SCOPES: dict[str, tuple[str, ...]] = {
    "both": ("global", "local"),
    "global": ("global",),
    "local": ("local",),
    "two_global": ("global", "global"),
    "two_local": ("local", "local"),
    "wide_global": ("global",),
    "wide_local": ("local",),
}
"""The branches that each choice of ``model.branches`` has."""
TWICE, WIDE = ("two_global", "two_local"), ("wide_global", "wide_local")
"""Controls with as many parameters as ``both``."""


class GlobalBranch(nn.Module):
    """Mamba over all tokens of the window."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.mamba = Mamba(mamba.shape_of(spec))

    def forward(self, u: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """What the branch adds."""
        mixed: Tensor = self.mamba(u)
        return mixed

    def plain(self, tokens: int) -> tuple[Mamba, int] | None:
        """The one block that computes the branch, and the tokens after which it begins anew, if that is all of it."""
        return (self.mamba, tokens) if isinstance(self.mamba, Mamba) else None

    def initial_state(self, batch: int) -> MambaState:
        """The state before the first token."""
        return self.mamba.initial_state(batch)

    def step(self, state: MambaState, u: Float[Tensor, "batch width"]) -> tuple[Tensor, MambaState]:
        """One token."""
        return self.mamba.step(state, u)


class LocalState(NamedTuple):
    """What a local branch remembers between tokens."""

    token: int
    """How many tokens there have been."""
    open: tuple[tuple[int, MambaState], ...]
    """First token and state of each sub-sequence under way, the oldest first."""


class LocalBranch(nn.Module):
    """Mamba over each sub-sequence, with weights in common or one set for each."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.length, self.stride = 3 * spec.subsequence, 3 * (spec.subsequence - spec.overlap)
        shape = mamba.shape_of(spec, local=True)
        self.per_window = spec.local_weights == "per_window"
        if self.per_window:
            self.mamba: nn.Module = nn.ModuleList(Mamba(shape) for _ in range(windows(spec, spec.context)))
        else:
            self.mamba = Mamba(shape)

    def forward(self, u: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """What the branch adds. A last sub-sequence that is too short is filled up; a causal block cannot notice."""
        batch, tokens, width = u.shape
        length = min(self.length, tokens)
        stride = length if length < self.length else self.stride
        count = 1 + -(-(tokens - length) // stride)
        missing = (count - 1) * stride + length - tokens
        padded = functional.pad(u, (0, 0, 0, missing)) if missing else u
        if stride == length:
            apart = self._mix(padded.reshape(batch, count, length, width)).flatten(1, 2)
            return apart[:, :tokens] if missing else apart
        mixed = self._mix(padded.unfold(1, length, stride).transpose(2, 3))
        first, later = mixed[:, 0], mixed[:, 1:, length - stride :]
        return torch.cat([first, later.flatten(1, 2)], dim=1)[:, :tokens]

    def plain(self, tokens: int) -> tuple[Mamba, int] | None:
        """The one block that computes the branch, and the tokens after which it begins anew, if that is all of it."""
        length = min(self.length, tokens)
        apart = tokens == length or (self.stride == self.length and tokens % length == 0)
        return (self.mamba, length) if isinstance(self.mamba, Mamba) and apart else None

    def _mix(self, parts: Float[Tensor, "batch part token width"]) -> Float[Tensor, "batch part token width"]:
        if isinstance(self.mamba, Mamba):
            mixed: Tensor = self.mamba(parts.flatten(0, 1))
            return mixed.unflatten(0, parts.shape[:2])
        assert isinstance(self.mamba, nn.ModuleList)
        each = zip(self.mamba, parts.unbind(1), strict=False)  # rollouts begin with fewer
        return torch.stack([one(part.contiguous()) for one, part in each], dim=1)

    def initial_state(self, batch: int) -> LocalState:
        """The state before the first token; see :func:`check_recurrent`."""
        return LocalState(0, ())

    def step(self, state: LocalState, u: Float[Tensor, "batch width"]) -> tuple[Tensor, LocalState]:
        """One token; a sub-sequence opens at every multiple of the stride and closes when it is full."""
        assert isinstance(self.mamba, Mamba)
        opened = state.open
        if state.token % self.stride == 0:
            opened = (*opened, (state.token, self.mamba.initial_state(len(u))))
        stepped = [(first, *self.mamba.step(before, u)) for first, before in opened]
        going_on = tuple((first, after) for first, _, after in stepped if state.token + 1 < first + self.length)
        return stepped[0][1], LocalState(state.token + 1, going_on)


class Fusion(nn.Module):
    """Adds two branches with weights a and b, which add up to two."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.kind, self.ratio = spec.fusion, spec.ratio
        if self.kind == "learned":
            self.mix = nn.Parameter(torch.zeros(()))
        if self.kind == "gate":
            self.gate = nn.Linear(spec.width, spec.width)
        self.initialise_last()

    @torch.no_grad()
    def initialise_last(self) -> None:
        """Start every learned weight at equal shares."""
        if self.kind == "gate":
            self.gate.weight.zero_()
            self.gate.bias.zero_()

    @property
    def shares(self) -> tuple[float, float]:
        """The weights of a plain sum."""
        share = self.ratio / (1 + self.ratio)
        return 2 * share, 2 * (1 - share)

    def forward(self, u: Float[Tensor, "*batch width"], first: Tensor, second: Tensor) -> Float[Tensor, "*batch width"]:
        """The weighted sum; ``u`` is what the branches were given."""
        if self.kind == "sum":
            one, other = self.shares
            return first + second if one == other else one * first + other * second
        learned = torch.sigmoid(self.mix if self.kind == "learned" else self.gate(u))
        return 2 * learned * first + 2 * (1 - learned) * second


class GLoMa(nn.Module):
    """The mixer of one layer."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        kinds = {"global": GlobalBranch, "local": LocalBranch}
        self.branches = nn.ModuleList(kinds[scope](spec) for scope in SCOPES[spec.branches])
        if len(self.branches) == 2:
            self.fusion = Fusion(spec)

    def forward(self, u: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """What the mixer adds to the residual stream."""
        return self._fused(u, [branch(u) for branch in self.branches])

    def plain_blocks(self, tokens: int) -> list[PlainBlock]:
        """The blocks whose weighted sum this is; none where it is something else."""
        plain: list[tuple[Mamba, int] | None] = [branch.plain(tokens) for branch in self.branches]  # type: ignore[operator]
        if None in plain or (len(plain) == 2 and self.fusion.kind != "sum"):
            return []
        shares = self.fusion.shares if len(plain) == 2 else (1.0,)
        return [PlainBlock(*one, share) for one, share in zip(plain, shares, strict=True) if one is not None]

    def _fused(self, u: Tensor, mixed: Sequence[Tensor]) -> Tensor:
        if len(mixed) == 1:
            return mixed[0]
        fused: Tensor = self.fusion(u, *mixed)
        return fused

    def initial_state(self, batch: int) -> list[MambaState | LocalState]:
        """The state before the first token, branch by branch."""
        return [branch.initial_state(batch) for branch in self.branches]  # type: ignore[operator]

    def step(self, state: list[Any], u: Float[Tensor, "batch width"]) -> tuple[Tensor, list[Any]]:
        """One token."""
        each = [branch.step(before, u) for branch, before in zip(self.branches, state, strict=True)]  # type: ignore[operator]
        return self._fused(u, [out for out, _ in each]), [after for _, after in each]


def windows(spec: ModelSpec, time: int) -> int:
    """Sub-sequences in a window of ``time`` timesteps."""
    return 1 + -(-max(0, time - spec.subsequence) // (spec.subsequence - spec.overlap))


def fields_of(spec: ModelSpec) -> set[str]:
    """Fields of the spec that the mixer reads and that make a difference."""
    scopes, names = SCOPES[spec.branches], {"branches"}
    if spec.branches in TWICE + WIDE:  # compared with the parameters of both
        names |= {"local_d_state", "local_d_conv", "local_expand", "local_weights"}
    if spec.branches in WIDE:
        names |= {"d_state", "d_conv", "expand", "fusion"}
        names |= {"subsequence", "overlap"} if spec.local_weights == "per_window" else set()
    if "local" in scopes:
        names |= {"subsequence", "overlap", "local_weights"} | mamba.fields_of(spec, local=True)
    if "global" in scopes:
        names |= mamba.fields_of(spec)
    if len(scopes) == 2:
        names |= {"fusion", "ratio"} if spec.fusion == "sum" else {"fusion"}
    return names


def check(spec: ModelSpec) -> None:
    """Refuse sub-sequences that cannot be cut.

    Raises:
        UserError: naming the field and what it may be.

    """
    if spec.branches in TWICE and _count_local(spec) != mamba.count(mamba.shape_of(spec)):
        raise UserError(
            f"model.branches {spec.branches} has the parameters of both only where these are alike: leave out "
            "model.local_d_state, local_d_conv, local_expand and local_weights, or use wide_global or wide_local"
        )
    counted = spec.branches in WIDE and spec.local_weights == "per_window"
    if not counted and "local" not in SCOPES[spec.branches]:
        return
    if spec.subsequence > spec.context:
        raise UserError(f"model.subsequence must not exceed model.context ({spec.context}): {spec.subsequence}")
    if spec.overlap >= spec.subsequence:
        raise UserError(f"model.overlap must be less than model.subsequence ({spec.subsequence}): {spec.overlap}")


def count(spec: ModelSpec) -> int:
    """Parameters of one mixer."""
    scopes = SCOPES[spec.branches]
    each = {"global": mamba.count(mamba.shape_of(spec)), "local": _count_local(spec)}
    fusion = {"sum": 0, "learned": 1, "gate": spec.width**2 + spec.width}[spec.fusion] if len(scopes) == 2 else 0
    return sum(each[scope] for scope in scopes) + fusion


def check_recurrent(spec: ModelSpec) -> None:
    """Refuse a mixer without a recurrent form.

    Raises:
        UserError: there is one Mamba per sub-sequence, hence none for those beyond the context.

    """
    if "local" in SCOPES[spec.branches] and spec.local_weights == "per_window":
        raise UserError("evaluate.rollout recurrent needs model.local_weights shared, not per_window")


def _count_local(spec: ModelSpec) -> int:
    copies = windows(spec, spec.context) if spec.local_weights == "per_window" else 1
    return copies * mamba.count(mamba.shape_of(spec, local=True))


def flops(spec: ModelSpec, time: int, block: Callable[[MambaShape], int] = mamba.flops) -> int:
    """Forward floating-point operations of one mixer for a window of ``time`` timesteps; ``block``: of a token."""
    scopes = SCOPES[spec.branches]
    length = min(spec.subsequence, time)
    each = {
        "global": 3 * time * block(mamba.shape_of(spec)),
        "local": 3 * windows(spec, time) * length * block(mamba.shape_of(spec, local=True)),
    }
    gate = 3 * time * 2 * spec.width**2 if len(scopes) == 2 and spec.fusion == "gate" else 0
    return sum(each[scope] for scope in scopes) + gate
