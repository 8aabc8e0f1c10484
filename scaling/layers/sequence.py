"""The frame that sequence models share: tokens in, layers, actions out, in parallel or one token at a time.

x <- x + Mixer(LN(x));   x <- x + FFN(LN(x))     (pre-norm, as in GPT-2)
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scaling.errors import UserError
from scaling.layers import feed_forward, tokens
from scaling.layers.tokens import ActionHead, TokenStem
from scaling.spec import ModelSpec, Space


class Layer(nn.Module):
    """One layer around a mixer of tokens."""

    mixer: Any
    """A module from (batch, token, width) to the same; a recurrent one has ``initial_state`` and ``step`` too.

    One with ``added`` takes in the norm before it and the residual around both.
    """

    def __init__(self, spec: ModelSpec, mixer: nn.Module, activation: str = "gelu") -> None:
        super().__init__()
        self.norm = nn.LayerNorm(spec.width)
        self.mixer = mixer
        self.ffn_norm = nn.LayerNorm(spec.width) if spec.ffn else None
        self.ffn = feed_forward.FeedForward(spec, activation) if spec.ffn else None

    def forward(self, x: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """The layer's output, residual included."""
        mixed = self.mixer.added(x, self.norm) if hasattr(self.mixer, "added") else x + self.mixer(self.norm(x))
        return self._with_ffn(mixed)

    def step(self, state: Any, x: Float[Tensor, "batch width"]) -> tuple[Float[Tensor, "batch width"], Any]:
        """Output for one token, and what a recurrent mixer remembers after it."""
        mixed, after = self.mixer.step(state, self.norm(x))
        return self._with_ffn(x + mixed), after

    def _with_ffn(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return x if self.ffn is None or self.ffn_norm is None else self.ffn.added(x, self.ffn_norm)


class SequenceModel(nn.Module):
    """Predicts the action of every timestep of a window from what precedes it."""

    def __init__(self, spec: ModelSpec, space: Space, layer: Callable[[ModelSpec], Layer]) -> None:
        super().__init__()
        self.stem = TokenStem(spec, space)
        self.layers = nn.Sequential(*(layer(spec) for _ in range(spec.depth)))
        self.head = ActionHead(spec, space)
        if spec.init == "gpt2":
            _gpt2_initialisation(self.layers)
            if spec.stem == "atari":
                _gpt2_initialisation(self.head)

    def forward(
        self,
        rtg: Float[Tensor, "batch time"],
        state: Tensor,
        action: Float[Tensor, "batch time action"] | Int[Tensor, "batch time"],
        timestep: Int[Tensor, "batch time"],
    ) -> Float[Tensor, "batch time action"]:
        """Actions in [-1, 1], or logits; the last timestep's own action is not used."""
        x: Tensor = self.layers(self.stem(rtg, state, action, timestep))
        return self.head(x)


class RecurrentModel(SequenceModel):
    """A sequence model whose mixers are recurrent, so that its context need not end."""

    def initial_state(self, batch: int) -> list[Any]:
        """The state before the first token, layer by layer."""
        return [layer.mixer.initial_state(batch) for layer in self._each()]

    def step(self, state: list[Any], token: Float[Tensor, "batch width"]) -> tuple[Tensor, list[Any]]:
        """Output of the last layer for one token of the stem, and the state after it.

        Token for token what :meth:`forward` computes; ``head.predict`` turns the output of a state token into an
        action.
        """
        after = []
        for layer, before in zip(self._each(), state, strict=True):
            token, new = layer.step(before, token)
            after.append(new)
        return token, after

    def _each(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]


@torch.no_grad()
def _gpt2_initialisation(module: nn.Module) -> None:
    """Weights of linear layers from N(0, 0.02^2), zero biases, as ``GPT2PreTrainedModel._init_weights`` does.

    What a part must start from for its own reasons, the step sizes of Mamba for one, it then sets again.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.weight.normal_(std=0.02)
            if part.bias is not None:
                part.bias.zero_()
    for part in module.modules():
        if hasattr(part, "initialise_last"):
            part.initialise_last()  # type: ignore[operator]


def fields_of(spec: ModelSpec) -> set[str]:
    """Fields of the spec that every sequence model reads."""
    return tokens.fields_of(spec) | {"init", "ffn"}


def check_recurrent(spec: ModelSpec) -> None:
    """Refuse tokens that cannot go on beyond a window.

    Raises:
        UserError: they are numbered within it.

    """
    if spec.stem == "atari" and spec.positions:
        raise UserError(
            "evaluate.rollout recurrent has no place for the tokens of model.stem atari, which are numbered within a "
            "window: use window, stem gym, or positions false"
        )


def count_layer(spec: ModelSpec, mixer: int) -> int:
    """Parameters of a layer whose mixer has ``mixer`` of them."""
    return 2 * spec.width + mixer + (feed_forward.count(spec) if spec.ffn else 0)


def count(spec: ModelSpec, space: Space, mixer: int) -> dict[str, int]:
    """Parameters: ``N_blocks``, ``N`` (all but input embeddings) and ``N_total``."""
    blocks = spec.depth * count_layer(spec, mixer)
    n = blocks + tokens.count_ends(spec, space)
    return {"N_blocks": blocks, "N": n, "N_total": n + tokens.count_embeddings(spec, space)}


def flops(spec: ModelSpec, space: Space, time: int, mixer: int) -> int:
    """Forward floating-point operations for a window whose mixers take ``mixer`` each."""
    ffn = 3 * time * feed_forward.flops(spec) if spec.ffn else 0
    return spec.depth * (mixer + ffn) + time * tokens.flops(spec, space)
