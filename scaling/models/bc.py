"""Behaviour cloning: a perceptron from the present state, with or without the return-to-go, to the action.

    h <- ReLU(W h + b), then dropout, ``depth`` times;   a = tanh(W h + b), or logits

As ``MLPBCModel`` of the Decision Transformer's code, which takes its last states side by side and trains the last
action alone. Given the return-to-go it is the control for what a sequence model gains from its context.

DEVIATION: one state, and every timestep of a window is trained.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scaling.layers import conv_encoder, tokens
from scaling.layers.dropout import Dropout
from scaling.spec import ModelSpec, Space


class Model(nn.Module):
    """Predicts the action of every timestep of a window from its own state alone."""

    def __init__(self, spec: ModelSpec, space: Space) -> None:
        super().__init__()
        self.conditioned, self.discrete = spec.conditioned, space.discrete
        self.frames = spec.frames if space.image else 0
        if space.image:
            self.embed_state = conv_encoder.conv_encoder(spec)
        self.stem = nn.Linear(_inputs(spec, space), spec.width)
        self.layers = nn.Sequential(*(nn.Linear(spec.width, spec.width) for _ in range(spec.depth - 1)))
        self.head = nn.Linear(spec.width, space.action)
        self.dropout = Dropout(spec.dropout)

    def forward(
        self,
        rtg: Float[Tensor, "batch time"],
        state: Tensor,
        action: Float[Tensor, "batch time action"] | Int[Tensor, "batch time"],
        timestep: Int[Tensor, "batch time"],
    ) -> Float[Tensor, "batch time action"]:
        """Actions in [-1, 1], or logits; actions and timesteps are not used."""
        seen = conv_encoder.encode(self.embed_state, state, self.frames) if self.frames else state
        h = torch.cat([rtg[..., None], seen], dim=-1) if self.conditioned else seen
        for layer in (self.stem, *self.layers):
            h = self.dropout(layer(h).relu())
        out: Tensor = self.head(h)
        return out if self.discrete else out.tanh()


def _inputs(spec: ModelSpec, space: Space) -> int:
    return (spec.width if space.image else space.state) + spec.conditioned


def fields(spec: ModelSpec) -> set[str]:
    """Fields of the spec that this kind reads, beyond those that every kind has."""
    return {"conditioned"} | tokens.encoder_fields(spec)


def check(spec: ModelSpec, space: Space) -> None:
    """Refuse a network that cannot be built for this space.

    Raises:
        UserError: naming the field and what it may be.

    """
    tokens.check_encoder(spec, space)


def count(spec: ModelSpec, space: Space) -> dict[str, int]:
    """Parameters, without building a network: ``N_blocks``, ``N`` (all but the first layer) and ``N_total``."""
    blocks = (spec.depth - 1) * (spec.width + 1) * spec.width
    n = blocks + (spec.width + 1) * space.action
    embedding = (_inputs(spec, space) + 1) * spec.width + (conv_encoder.count(spec) if space.image else 0)
    return {"N_blocks": blocks, "N": n, "N_total": n + embedding}


def flops(spec: ModelSpec, space: Space, time: int) -> int:
    """Forward floating-point operations for one window of ``time`` timesteps."""
    products = _inputs(spec, space) + (spec.depth - 1) * spec.width + space.action
    return time * (2 * spec.width * products + (conv_encoder.flops(spec) if space.image else 0))


def products(spec: ModelSpec, space: Space, time: int) -> int:
    """Those of them that are matrix products, a convolution of pictures among them: what a step cannot do without."""
    return flops(spec, space, time)
