"""Decision Mamba (Ota 2024, arXiv 2403.19925): the Decision Transformer with Mamba in place of attention.

    x <- x + Mamba(LN(x));   x <- x + FFN(LN(x)),   FFN = Linear -> GELU -> Linear -> dropout

As in the author's code (Toshihiro-Ota/decision-mamba, gym/models/layers.py), with these differences.

DEVIATION: step sizes keep mamba-ssm's initialisation, which the code overwrites with zero; ``init: gpt2`` with
``dt_init: zero_bias`` does what the code does.
DEVIATION: windows are padded on the right and masked in the loss; the code pads on the left, with different values in
training and in rollouts, and lets Mamba see them.
DEVIATION: weight decay spares A_log, D, norms, biases and embeddings; the Gym code decays all.
"""

from scaling.layers import mamba, sequence, tokens
from scaling.layers.mamba import Mamba
from scaling.layers.sequence import Layer, RecurrentModel
from scaling.spec import ModelSpec, Space


class Model(RecurrentModel):
    """Predicts the action of every timestep of a window from what precedes it."""

    def __init__(self, spec: ModelSpec, space: Space) -> None:
        super().__init__(spec, space, lambda spec: Layer(spec, Mamba(mamba.shape_of(spec))))


def fields(spec: ModelSpec) -> set[str]:
    """Fields of the spec that this kind reads, beyond those that every kind has."""
    return sequence.fields_of(spec) | mamba.fields_of(spec)


def check(spec: ModelSpec, space: Space) -> None:
    """Refuse a network that cannot be built for this space.

    Raises:
        UserError: naming the field and what it may be.

    """
    tokens.check_encoder(spec, space)


def check_recurrent(spec: ModelSpec) -> None:
    """Refuse a network without a recurrent form; see :func:`sequence.check_recurrent`."""
    sequence.check_recurrent(spec)


def count(spec: ModelSpec, space: Space) -> dict[str, int]:
    """Parameters, without building a network; see :func:`sequence.count`."""
    return sequence.count(spec, space, mamba.count(mamba.shape_of(spec)))


def flops(spec: ModelSpec, space: Space, time: int) -> int:
    """Forward floating-point operations for one window of ``time`` timesteps."""
    return sequence.flops(spec, space, time, 3 * time * mamba.flops(mamba.shape_of(spec)))


def products(spec: ModelSpec, space: Space, time: int) -> int:
    """Those of them that are matrix products, a convolution of pictures among them: what a step cannot do without."""
    return sequence.flops(spec, space, time, 3 * time * mamba.products(mamba.shape_of(spec)))
