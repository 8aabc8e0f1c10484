"""The decision sequence (R_1, s_1, a_1, ..., R_K, s_K, a_K) as tokens, and actions read off its state tokens.

``stem: gym`` is that of the Decision Transformer's Gym code (Chen et al. 2021, Algorithm 1): an embedding for each
kind of token plus one of the timestep, common to its three tokens; LayerNorm; dropout. ``stem: atari`` is that of its
Atari code: tanh of each embedding plus one of the window's first timestep and one of the token's place in the window;
dropout; no bias in the head.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scaling.errors import UserError
from scaling.layers import conv_encoder
from scaling.layers.dropout import Dropout
from scaling.spec import ModelSpec, Space


class TokenStem(nn.Module):
    """Embeds a window; the result is ordered as (batch, 3 time, width)."""

    def __init__(self, spec: ModelSpec, space: Space) -> None:
        super().__init__()
        self.frames = spec.frames if space.image else 0
        self.embed_rtg = nn.Linear(1, spec.width)
        self.embed_state = state_embedding(spec, space)
        self.embed_action = action_embedding(spec, space)
        self.atari = spec.stem == "atari"
        self.positions = spec.positions
        if self.atari:
            if self.positions:
                self.embed_window = _zeros(nn.Embedding(spec.max_timestep + 1, spec.width))
                self.embed_position = _zeros(nn.Embedding(3 * spec.context + 1, spec.width))
        else:
            if self.positions:
                self.embed_timestep = nn.Embedding(spec.max_timestep, spec.width)
            self.norm = nn.LayerNorm(spec.width)
        self.dropout = Dropout(spec.dropout)

    def forward(
        self,
        rtg: Float[Tensor, "batch time"],
        state: Tensor,
        action: Float[Tensor, "batch time action"] | Int[Tensor, "batch time"],
        timestep: Int[Tensor, "batch time"],
    ) -> Float[Tensor, "batch token width"]:
        """Tokens of a window; states are vectors, or pictures as :func:`conv_encoder.encode` takes them."""
        seen = conv_encoder.encode(self.embed_state, state, self.frames) if self.frames else self.embed_state(state)
        kinds = torch.stack([self.embed_rtg(rtg[..., None]), seen, self.embed_action(action)], dim=2)
        return self.dropout(self._atari(kinds, timestep) if self.atari else self._gym(kinds, timestep))

    def _gym(self, kinds: Float[Tensor, "batch time 3 width"], timestep: Int[Tensor, "batch time"]) -> Tensor:
        if self.positions:
            kinds = kinds + self.embed_timestep(timestep)[:, :, None]
        tokens: Tensor = self.norm(kinds.flatten(1, 2))
        return tokens

    def _atari(self, kinds: Float[Tensor, "batch time 3 width"], timestep: Int[Tensor, "batch time"]) -> Tensor:
        squashed = kinds.tanh()
        if self.frames:  # the encoder has its own tanh
            squashed = torch.stack([squashed[:, :, 0], kinds[:, :, 1], squashed[:, :, 2]], dim=2)
        tokens = squashed.flatten(1, 2)
        if self.positions:
            place = torch.arange(tokens.shape[1], device=tokens.device)
            tokens = tokens + self.embed_window(timestep[:, :1]) + self.embed_position(place)
        return tokens


class ActionHead(nn.Module):
    """Predicts each timestep's action from its state token: a vector in [-1, 1], or logits."""

    def __init__(self, spec: ModelSpec, space: Space) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(spec.width)
        self.out = nn.Linear(spec.width, space.action, bias=spec.stem == "gym")
        self.discrete = space.discrete

    def forward(self, tokens: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch time action"]:
        """Predictions at the state tokens."""
        return self.predict(tokens[:, 1::3])

    def predict(self, tokens: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch action"]:
        """Predictions from state tokens alone."""
        out = self.out(self.norm(tokens))
        return out if self.discrete else out.tanh()


def _zeros(table: nn.Embedding) -> nn.Embedding:
    nn.init.zeros_(table.weight)
    return table


def state_embedding(spec: ModelSpec, space: Space) -> nn.Sequential | nn.Linear:
    """Linear for vectors, convolutions for pictures."""
    return conv_encoder.conv_encoder(spec) if space.image else nn.Linear(space.state, spec.width)


def action_embedding(spec: ModelSpec, space: Space) -> nn.Module:
    """Linear for vectors, a table for choices."""
    if not space.discrete:
        return nn.Linear(space.action, spec.width)
    table = nn.Embedding(space.action, spec.width)
    if spec.stem == "atari":
        nn.init.normal_(table.weight, std=0.02)
    return table


def fields_of(spec: ModelSpec) -> set[str]:
    """Fields of the spec that the stem and head read and that make a difference."""
    return {"stem", "positions"} | encoder_fields(spec)


def encoder_fields(spec: ModelSpec) -> set[str]:
    """Fields of the spec that the embedding of states reads."""
    return {"encoder", "frames"} if spec.encoder == "conv" else {"encoder"}


def check_encoder(spec: ModelSpec, space: Space) -> None:
    """Refuse an encoder that the states do not fit.

    Raises:
        UserError: with the kind of states and the encoder that takes them.

    """
    if space.image and spec.encoder != "conv":
        raise UserError(
            f"model.encoder {spec.encoder} takes vectors, but the states are pictures of {space.state} x "
            f"{space.state} pixels: use conv"
        )
    if space.image and space.state != conv_encoder.SIDE:
        raise UserError(
            f"model.encoder conv takes pictures of {conv_encoder.SIDE} x {conv_encoder.SIDE} pixels, "
            f"not {space.state} x {space.state}; resize them"
        )
    if not space.image and spec.encoder != "linear":
        raise UserError(
            f"model.encoder {spec.encoder} takes pictures, but the states are vectors of {space.state} components: "
            "use linear"
        )


def count_state_embedding(spec: ModelSpec, space: Space) -> int:
    """Parameters of the embedding of states."""
    return conv_encoder.count(spec) if space.image else (space.state + 1) * spec.width


def flops_state_embedding(spec: ModelSpec, space: Space) -> int:
    """Forward floating-point operations of embedding one state."""
    return conv_encoder.flops(spec) if space.image else 2 * space.state * spec.width


def count_embeddings(spec: ModelSpec, space: Space) -> int:
    """Parameters that embed inputs: not part of N."""
    action = space.action * spec.width + (0 if space.discrete else spec.width)
    rows = spec.max_timestep + 1 + 3 * spec.context + 1 if spec.stem == "atari" else spec.max_timestep
    tables = rows * spec.width if spec.positions else 0
    return 2 * spec.width + count_state_embedding(spec, space) + action + tables


def count_ends(spec: ModelSpec, space: Space) -> int:
    """Parameters of the stem's norm, the final norm and the head."""
    if spec.stem == "atari":
        return 2 * spec.width + spec.width * space.action
    return 4 * spec.width + (spec.width + 1) * space.action


def flops(spec: ModelSpec, space: Space) -> int:
    """Forward floating-point operations of stem and head for one timestep; table look-ups cost none."""
    embedded = 1 + (0 if space.discrete else space.action)
    return 2 * spec.width * (embedded + space.action) + flops_state_embedding(spec, space)
