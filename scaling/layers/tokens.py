"""The decision sequence (R_1, s_1, a_1, ..., R_K, s_K, a_K) as tokens, and actions read off its state tokens.

The stem and head of the Decision Transformer (Chen et al. 2021, Algorithm 1): a linear embedding for each kind of
token, plus an embedding of the timestep common to its three tokens, LayerNorm, dropout.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scaling.spec import ModelSpec, Space


class TokenStem(nn.Module):
    """Embeds a window; the result is ordered as (batch, 3 time, width)."""

    def __init__(self, spec: ModelSpec, space: Space) -> None:
        super().__init__()
        self.embed_rtg = nn.Linear(1, spec.width)
        self.embed_state = nn.Linear(space.state, spec.width)
        self.embed_action = action_embedding(spec, space)
        self.embed_timestep = nn.Embedding(spec.max_timestep, spec.width)
        self.norm = nn.LayerNorm(spec.width)
        self.dropout = nn.Dropout(spec.dropout)

    def forward(
        self,
        rtg: Float[Tensor, "batch time"],
        state: Float[Tensor, "batch time state"],
        action: Float[Tensor, "batch time action"] | Int[Tensor, "batch time"],
        timestep: Int[Tensor, "batch time"],
    ) -> Float[Tensor, "batch token width"]:
        """Tokens of a window."""
        kinds = [self.embed_rtg(rtg[..., None]), self.embed_state(state), self.embed_action(action)]
        tokens = torch.stack(kinds, dim=2) + self.embed_timestep(timestep)[:, :, None]
        return self.dropout(self.norm(tokens.flatten(1, 2)))


class ActionHead(nn.Module):
    """Predicts each timestep's action from its state token: a vector in [-1, 1], or logits."""

    def __init__(self, spec: ModelSpec, space: Space) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(spec.width)
        self.out = nn.Linear(spec.width, space.action)
        self.discrete = space.discrete

    def forward(self, tokens: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch time action"]:
        """Predictions at the state tokens."""
        out = self.out(self.norm(tokens[:, 1::3]))
        return out if self.discrete else out.tanh()


def action_embedding(spec: ModelSpec, space: Space) -> nn.Module:
    """Linear for vectors, a table for choices."""
    return nn.Embedding(space.action, spec.width) if space.discrete else nn.Linear(space.action, spec.width)


def count_embeddings(spec: ModelSpec, space: Space) -> int:
    """Parameters that embed inputs: not part of N."""
    action = space.action * spec.width + (0 if space.discrete else spec.width)
    return 2 * spec.width + (space.state + 1) * spec.width + action + spec.max_timestep * spec.width


def count_ends(spec: ModelSpec, space: Space) -> int:
    """Parameters of the stem's norm, the final norm and the head."""
    return 4 * spec.width + (spec.width + 1) * space.action


def flops(spec: ModelSpec, space: Space) -> int:
    """Forward floating-point operations of stem and head for one timestep; table look-ups cost none."""
    embedded = 1 + space.state + (0 if space.discrete else space.action)
    return 2 * spec.width * (embedded + space.action)
