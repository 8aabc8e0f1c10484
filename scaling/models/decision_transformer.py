"""Decision Transformer (Chen et al. 2021, arXiv 2106.01345): GPT-2 over the decision sequence.

    x <- x + Attention(LN(x));   x <- x + FFN(LN(x)),   FFN = Linear -> ReLU or GELU -> Linear -> dropout

As in the authors' Gym code (``stem: gym``) and Atari code (``stem: atari``, ``activation: gelu``).

The Gym code also carries a vocabulary of one word and heads for the next state and return, and the Atari code a table
of words, none of which reaches the loss. They are kept, without gradients, so that a checkpoint of the original fits
and comes back whole; they count in ``N_total`` alone.

DEVIATION: windows are padded on the right and masked in the loss, which a causal network cannot notice; the Gym code
pads on the left and masks attention, the Atari code moves a window that meets the end of an episode to the left.
DEVIATION: weight decay spares norms, biases and embeddings; the Gym code decays all.
"""

from torch import nn

from scaling.errors import UserError
from scaling.layers import attention, sequence, tokens
from scaling.layers.attention import Attention
from scaling.layers.sequence import Layer, SequenceModel
from scaling.spec import ModelSpec, Space


class Model(SequenceModel):
    """Predicts the action of every timestep of a window from what precedes it."""

    def __init__(self, spec: ModelSpec, space: Space) -> None:
        super().__init__(spec, space, lambda spec: Layer(spec, Attention(spec), spec.activation))
        self.unused = nn.ModuleDict(_unused(spec, space)).requires_grad_(requires_grad=False)


def _unused(spec: ModelSpec, space: Space) -> dict[str, nn.Module]:
    """Parts of the original that its loss never reaches, by the names they have there."""
    if spec.stem == "atari":
        return {"tok_emb": nn.Embedding(space.action, spec.width)}
    heads = {"wte": nn.Embedding(1, spec.width), "predict_return": nn.Linear(spec.width, 1)}
    return heads if space.image else {**heads, "predict_state": nn.Linear(spec.width, space.state)}


def fields(spec: ModelSpec) -> set[str]:
    """Fields of the spec that this kind reads, beyond those that every kind has."""
    return sequence.fields_of(spec) | {"heads"} | ({"activation"} if spec.ffn else set())


def check(spec: ModelSpec, space: Space) -> None:
    """Refuse a network that cannot be built for this space.

    Raises:
        UserError: naming the field and what it may be.

    """
    tokens.check_encoder(spec, space)
    if spec.width % spec.heads:
        divisors = [str(heads) for heads in range(1, spec.width + 1) if spec.width % heads == 0]
        raise UserError(
            f"model.heads must divide model.width ({spec.width}), one of {', '.join(divisors)}: {spec.heads}"
        )


def count(spec: ModelSpec, space: Space) -> dict[str, int]:
    """Parameters, without building a network; see :func:`sequence.count`."""
    counted = sequence.count(spec, space, attention.count(spec))
    return {**counted, "N_total": counted["N_total"] + _count_unused(spec, space)}


def _count_unused(spec: ModelSpec, space: Space) -> int:
    if spec.stem == "atari":
        return space.action * spec.width
    heads = spec.width + spec.width + 1
    return heads if space.image else heads + (spec.width + 1) * space.state


def flops(spec: ModelSpec, space: Space, time: int) -> int:
    """Forward floating-point operations for one window of ``time`` timesteps."""
    return sequence.flops(spec, space, time, attention.flops(spec, 3 * time))


def products(spec: ModelSpec, space: Space, time: int) -> int:
    """Those of them that are matrix products, a convolution of pictures among them: what a step cannot do without."""
    return flops(spec, space, time)
