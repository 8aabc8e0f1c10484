"""Dropout whose mask is a function of a seed and of each entry's number (Srivastava et al. 2014, inverted).

    y = x m / (1 - p),   m ~ Bernoulli(1 - p)

The mask is not kept for the way back but computed again.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scaling.ops import _masks
from scaling.ops._rows import flat, signed, threads_of_torch


@dataclass(frozen=True)
class Draw:
    """What decides a mask."""

    p: float
    """Probability that an entry is dropped."""
    seeds: tuple[int, ...] = (0,)
    """From 0 to 2^63 - 1; of a population, one for each member."""
    begin: int = 0
    """Number of the first entry, where it is not the first of its batch."""
    generators: tuple[torch.Generator, ...] = ()
    """Those from which the members' seeds are still to be drawn, where a map over members hides who they are."""

    def settled(self) -> "Draw":
        """The same, the seeds drawn."""
        if not self.generators:
            return self
        return Draw(self.p, tuple(seed_from(generator) for generator in self.generators), self.begin)

    @property
    def threshold(self) -> int:
        """Of 32 random bits, below which an entry is dropped: p to 32 bits, but never all of them."""
        return min(round(self.p * 2**32), 2**32 - 1)

    @property
    def scale(self) -> float:
        """What remains is multiplied with this."""
        return 1.0 / (1.0 - self.p)

    def kernel(self) -> tuple[np.ndarray, np.uint32, np.float32, int]:
        """Seeds, threshold, scale and first number, as the kernel takes them."""
        return np.array(self.seeds, np.uint64), np.uint32(self.threshold), np.float32(self.scale), self.begin

    def each(self, members: int) -> tuple[int, ...]:
        """The seed of each member, which may be the same."""
        return self.seeds if len(self.seeds) == members else self.seeds * members


def seed_from(generator: torch.Generator | None) -> int:
    """A seed, drawn from a generator, or from PyTorch's own."""
    return int(torch.randint(2**63 - 1, (), generator=generator))


NOTHING = Draw(0.0)
"""Drops nothing."""


def dropout(x: Tensor, draw: Draw) -> Tensor:
    """Entries dropped on a CPU; of any shape, numbered from its first axis on.

    Mapped over, every member has its own seed and the same numbers.
    """
    y: Tensor = _Dropped.apply(x, draw)
    return y


def dropout_ref(x: Tensor, draw: Draw) -> Tensor:
    """The same, one entry after another, from the first seed."""
    numbers = range(draw.begin, draw.begin + x.numel())
    mask = torch.tensor([random_bits(draw.seeds[0], i) >= draw.threshold for i in numbers]).view(x.shape)
    return x * mask * draw.scale


def random_bits(seed: int, number: int) -> int:
    """32 random bits for an entry: Philox4x32-10 in Python's integers."""
    chunk, place = divmod(number, _masks.CHUNK)
    lane, c = divmod(place, _masks.SIDE)
    low = 2**32 - 1
    counter = chunk * _masks.SIDE + c
    x, key = [counter & low, counter >> 32, 0, 0], [seed & low, seed >> 32]
    for _ in range(_masks.ROUNDS):
        first, second = int(_masks.MULTIPLIERS[0]) * x[0], int(_masks.MULTIPLIERS[1]) * x[2]
        x = [second >> 32 ^ x[1] ^ key[0], second & low, first >> 32 ^ x[3] ^ key[1], first & low]
        key = [(k + int(step)) & low for k, step in zip(key, _masks.INCREMENTS, strict=True)]
    return x[lane]


class _Dropped(torch.autograd.Function):
    """The product with the mask; mapped over, that of all members in one call."""

    @staticmethod
    @signed
    def forward(x: Tensor, draw: Draw) -> Tensor:
        y: Tensor = torch.ops.scaling.dropout(x, draw.p, draw.seeds, draw.begin)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Draw], output: Tensor) -> None:
        ctx.draw = inputs[1]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return _Dropped.apply(dy, ctx.draw), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, None], x: Tensor, draw: Draw) -> tuple[Tensor, int]:
        x = x.expand(info.batch_size, *x.shape) if in_dims[0] is None else x.movedim(in_dims[0], 0)
        return _Dropped.apply(x, draw.settled()), 0


def _drop(x: Tensor, p: float, seeds: list[int], begin: int) -> Tensor:
    if x.dtype != torch.float32:
        return (x * _drop(torch.ones(x.shape), p, seeds, begin)).to(x.dtype)
    x, draw = x.contiguous(), Draw(p, tuple(seeds), begin)
    y = torch.empty_like(x)
    if workers := min(threads_of_torch(), -(-x.numel() // _masks.BLOCK)):
        _masks.drop(flat(x), *draw.kernel(), flat(y), workers)
    return y


_LIBRARY = torch.library.Library("scaling", "FRAGMENT")
"""An operator, so that a profiler knows it by name."""
_LIBRARY.define("dropout(Tensor x, float p, int[] seeds, int begin) -> Tensor")
_LIBRARY.impl("dropout", _drop, "CPU")
