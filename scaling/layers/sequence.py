"""The frame that sequence models share: tokens in, layers, actions out, in parallel or one token at a time.

x <- x + Mixer(LN(x));   x <- x + FFN(LN(x))     (pre-norm, as in GPT-2)
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scaling.errors import UserError
from scaling.layers import feed_forward, mamba, tokens
from scaling.layers.mamba import PlainBlock
from scaling.layers.tokens import ActionHead, TokenStem
from scaling.ops.dropout import NOTHING
from scaling.ops.layers import Form, layers
from scaling.ops.mamba_inner import at_least_single
from scaling.spec import ModelSpec, Space


class Layer(nn.Module):
    """One layer around a mixer of tokens."""

    mixer: Any
    """A module from (batch, token, width) to the same; a recurrent one has ``initial_state`` and ``step`` too.

    One with ``plain_blocks`` may consist of Mamba blocks.
    """

    def __init__(self, spec: ModelSpec, mixer: nn.Module, activation: str = "gelu") -> None:
        super().__init__()
        self.norm = nn.LayerNorm(spec.width)
        self.mixer = mixer
        self.ffn_norm = nn.LayerNorm(spec.width) if spec.ffn else None
        self.ffn = feed_forward.FeedForward(spec, activation) if spec.ffn else None

    def forward(self, x: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """The layer's output, residual included."""
        if not (blocks := self.plain_blocks(x)):
            return self._with_ffn(x + self.mixer(self.norm(x)))
        if self.has_network_in_kernel(x):
            return _by_kernel([self], x, [blocks], networks=True)
        return self._with_ffn(_by_kernel([self], x, [blocks], networks=False))

    def plain_blocks(self, x: Tensor) -> list[PlainBlock]:
        """The Mamba blocks that are the mixer, where a kernel computes them."""
        if not hasattr(self.mixer, "plain_blocks") or not mamba.in_one_kernel(x):
            return []
        blocks: list[PlainBlock] = self.mixer.plain_blocks(x.shape[1])
        return blocks

    def has_network_in_kernel(self, x: Tensor) -> bool:
        """Whether a kernel computes the network at the end."""
        if self.ffn is None or self.ffn_norm is None or self.ffn_norm.eps != self.norm.eps:
            return False
        return self.ffn.in_one_kernel(x)

    def form(self, blocks: Sequence[PlainBlock], network: bool) -> Form:
        """That of the layer with these blocks, and with its network or without."""
        activation = self.ffn.activation if network and self.ffn is not None else None
        return Form(tuple(block.length for block in blocks), activation=activation, eps=self.norm.eps)

    def parameters_in_order(self, blocks: Sequence[PlainBlock], network: bool) -> list[Tensor]:
        """Those of the mixer, if it has blocks, and of the network, as :class:`Form` says."""
        found = [parameter for block, _, share in blocks for parameter in block.parameters_in_order(share)]
        if blocks:
            found += [self.norm.weight, self.norm.bias]
        if network:
            assert self.ffn is not None
            assert self.ffn_norm is not None
            found += [*self.ffn.parameters_in_order(), self.ffn_norm.weight, self.ffn_norm.bias]
        return found

    def step(self, state: Any, x: Float[Tensor, "batch width"]) -> tuple[Float[Tensor, "batch width"], Any]:
        """Output for one token, and what a recurrent mixer remembers after it."""
        mixed, after = self.mixer.step(state, self.norm(x))
        return self._with_ffn(x + mixed), after

    def _with_ffn(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        if self.ffn is None or self.ffn_norm is None:
            return x
        if self.has_network_in_kernel(x):
            return _by_kernel([self], x, [[]], networks=True)
        added: Tensor = self.ffn(self.ffn_norm(x))
        return x + added


class Layers(nn.Sequential):
    """Layers one after another: on a CPU in one kernel where they are alike and it computes all of each.

    Nobody who watches a layer or its parts is called then.
    """

    def forward(self, x: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """The last layer's output."""
        each = [layer for layer in self if isinstance(layer, Layer)]
        blocks = [layer.plain_blocks(x) for layer in each]
        if len(each) == len(self) and all(blocks) and len(set(map(_whole, each, blocks))) == 1:
            networks = each[0].ffn is not None
            if not networks or all(layer.has_network_in_kernel(x) for layer in each):
                return _by_kernel(each, x, blocks, networks)
        for layer in self:
            x = layer(x)
        return x


def _whole(layer: Layer, blocks: Sequence[PlainBlock]) -> tuple[Form, float]:
    """What must be alike in layers of which one kernel computes all: form, and probability that an entry is dropped."""
    dropout = None if layer.ffn is None else layer.ffn.dropout
    return layer.form(blocks, network=True), dropout.p if dropout is not None and dropout.active else 0.0


def _by_kernel(each: Sequence[Layer], x: Tensor, blocks: Sequence[Sequence[PlainBlock]], networks: bool) -> Tensor:
    """Layers with these blocks, and with or without their networks; without blocks, the networks alone."""
    draws = [layer.ffn.dropout.draw(x) if networks and layer.ffn is not None else NOTHING for layer in each]
    every = zip(each, blocks, strict=True)
    parameters = [parameter for layer, own in every for parameter in layer.parameters_in_order(own, networks)]
    return layers(at_least_single(x), each[0].form(blocks[0], networks), draws, parameters)


class SequenceModel(nn.Module):
    """Predicts the action of every timestep of a window from what precedes it."""

    def __init__(self, spec: ModelSpec, space: Space, layer: Callable[[ModelSpec], Layer]) -> None:
        super().__init__()
        self.stem = TokenStem(spec, space)
        self.layers = Layers(*(layer(spec) for _ in range(spec.depth)))
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
