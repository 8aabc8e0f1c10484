"""Dropout whose masks depend on a window's place in the whole batch, not on which process or micro-batch computes it.

    y = x m / (1 - p),   m ~ Bernoulli(1 - p)

Where a batch is computed in shares, each share draws the mask of the whole batch and takes its own rows, so that the
generator advances alike everywhere and the sum of the shares' gradients is the gradient of the whole.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Share:
    """Windows ``begin`` to ``stop`` of a batch of ``total``."""

    begin: int
    stop: int
    total: int


class Dropout(nn.Module):
    """Dropout with probability ``p`` while training."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.share: Share | None = None
        """The part of the batch that the next forward pass sees; nothing for all of it."""
        self.generators: list[torch.Generator] | None = None
        """One for each member of a population that is mapped over; nothing for PyTorch's global one."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, ...) with entries dropped; rows of one window are next to each other."""
        if self.generators is not None and self.active:
            return cast(Tensor, _OwnMasks.apply(x, self.p, self.generators))
        if self.share is None or not self.active:
            return functional.dropout(x, self.p, self.training)
        return x * self.mask(x)

    @property
    def active(self) -> bool:
        """Whether anything is dropped."""
        return self.training and self.p > 0

    @property
    def is_special(self) -> bool:
        """Whether PyTorch's own dropout would draw other masks, or cannot be mapped over a population."""
        return self.generators is not None or (self.active and self.share is not None)

    def mask(self, like: Tensor) -> Tensor:
        """The share's rows of the whole batch's mask, for a tensor whose first axis is the share's."""
        share = self.share
        assert share is not None
        rows = like.shape[0] // (share.stop - share.begin)
        whole = torch.empty((share.total * rows, *like.shape[1:]), dtype=like.dtype, device=like.device)
        own = whole.bernoulli_(1 - self.p).div_(1 - self.p)[share.begin * rows : share.stop * rows]
        return own.clone()  # a view would keep the whole for the backward pass


class _OwnMasks(torch.autograd.Function):
    """Masks that each member of a population draws from its own generator, as it would alone."""

    @staticmethod
    def forward(x: Tensor, p: float, generators: list[torch.Generator]) -> Tensor:
        """Never called: only a map over members knows whose mask is whose."""
        raise NotImplementedError

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing to save: the product below is differentiated as such."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, p: float, generators: list[torch.Generator]
    ) -> tuple[Tensor, int]:
        """(member, batch, ...) with entries dropped."""
        x = x.movedim(in_dims[0] or 0, 0)
        mask = torch.empty_like(x, memory_format=torch.contiguous_format, requires_grad=False)
        for own, generator in zip(mask, generators, strict=True):
            own.bernoulli_(1 - p, generator=generator)
        return x * mask.div_(1 - p), 0


def take_share(model: nn.Module, share: Share | None) -> None:
    """Tell every dropout of a network which windows of the batch come next."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.share = share
