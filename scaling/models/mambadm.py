"""MambaDM (Cao et al. 2024, arXiv 2406.02013): a decision sequence mixed at two scales by GLoMa layers.

    x <- x + GLoMa(LN(x)),   GLoMa(u) = Mamba_g(u) + Mamba_l(sub-sequences of u)     (Eq. 10: equal weights)
    x <- x + FFN(LN(x)),     FFN = Linear -> GELU -> Linear -> dropout, four times wider inside

The authors released no code; this is a reading with the fewest assumptions, each marked.

CHOICE: a sub-sequence is a whole number of timesteps, not of tokens, so that no (R, s, a) is cut.
CHOICE: sub-sequences share one Mamba, as in GLAM, and do not overlap, unlike there. ``overlap`` and ``local_weights``
take the other readings.
CHOICE: they are counted from the window's first timestep; windows slide the same way in training and in rollouts.
CHOICE: pre-norm, one norm for both branches, residual around their sum, as in Decision Mamba's block.
CHOICE: PyTorch's initialisation of linear layers and mamba-ssm's of the blocks. ``init: gpt2`` with
``dt_init: zero_bias`` is that of the public Decision Mamba.
"""

import dataclasses
import functools
import itertools

from scaling.layers import gloma, mamba, sequence, tokens
from scaling.layers.gloma import GLoMa
from scaling.layers.sequence import Layer, RecurrentModel
from scaling.spec import ModelSpec, Space


class Model(RecurrentModel):
    """Predicts the action of every timestep of a window from what precedes it."""

    def __init__(self, spec: ModelSpec, space: Space) -> None:
        super().__init__(widened(spec), space, lambda spec: Layer(spec, GLoMa(spec)))


def fields(spec: ModelSpec) -> set[str]:
    """Fields of the spec that this kind reads, beyond those that every kind has."""
    return sequence.fields_of(spec) | gloma.fields_of(spec)


def check(spec: ModelSpec, space: Space) -> None:
    """Refuse a network that cannot be built for this space.

    Raises:
        UserError: naming the field and what it may be.

    """
    tokens.check_encoder(spec, space)
    gloma.check(spec)


def check_recurrent(spec: ModelSpec) -> None:
    """Refuse a network without a recurrent form; see :mod:`sequence` and :mod:`gloma`."""
    sequence.check_recurrent(spec)
    gloma.check_recurrent(spec)


@functools.cache
def widened(spec: ModelSpec) -> ModelSpec:
    """The spec with the width at which a single wide branch has as many parameters per layer as ``both``.

    The nearest integer width; other specs come back as they are.
    """
    if spec.branches not in gloma.WIDE:
        return spec
    wanted = _count_layer(dataclasses.replace(spec, branches="both"))
    wide = next(w for w in itertools.count(1) if _count_layer(dataclasses.replace(spec, width=w)) >= wanted)
    candidates = [dataclasses.replace(spec, width=width) for width in (wide, max(1, wide - 1))]
    return min(candidates, key=lambda candidate: abs(_count_layer(candidate) - wanted))


def _count_layer(spec: ModelSpec) -> int:
    return sequence.count_layer(spec, gloma.count(spec))


def count(spec: ModelSpec, space: Space) -> dict[str, int]:
    """Parameters, without building a network; see :func:`sequence.count`."""
    spec = widened(spec)
    return sequence.count(spec, space, gloma.count(spec))


def flops(spec: ModelSpec, space: Space, time: int) -> int:
    """Forward floating-point operations for one window of ``time`` timesteps."""
    spec = widened(spec)
    return sequence.flops(spec, space, time, gloma.flops(spec, time))


def products(spec: ModelSpec, space: Space, time: int) -> int:
    """Those of them that are matrix products, a convolution of pictures among them: what a step cannot do without."""
    spec = widened(spec)
    return sequence.flops(spec, space, time, gloma.flops(spec, time, mamba.products))
