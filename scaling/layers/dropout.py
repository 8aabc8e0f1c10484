"""Dropout whose masks depend on a window's place in the whole batch, not on which process or micro-batch computes it.

    y = x m / (1 - p),   m ~ Bernoulli(1 - p)

Where a batch is computed in shares, each share draws the mask of the whole batch and takes its own rows, so that the
generator advances alike everywhere and the sum of the shares' gradients is the gradient of the whole.
"""

from dataclasses import dataclass

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

    def forward(self, x: Tensor) -> Tensor:
        """(batch, ...) with entries dropped; rows of one window are next to each other."""
        if self.share is None or not self.active:
            return functional.dropout(x, self.p, self.training)
        return x * self.mask(x)

    @property
    def active(self) -> bool:
        """Whether anything is dropped."""
        return self.training and self.p > 0

    def mask(self, like: Tensor) -> Tensor:
        """The share's rows of the whole batch's mask, for a tensor whose first axis is the share's."""
        share = self.share
        assert share is not None
        rows = like.shape[0] // (share.stop - share.begin)
        whole = torch.empty((share.total * rows, *like.shape[1:]), dtype=like.dtype, device=like.device)
        own = whole.bernoulli_(1 - self.p).div_(1 - self.p)[share.begin * rows : share.stop * rows]
        return own.clone()  # a view would keep the whole for the backward pass


def take_share(model: nn.Module, share: Share | None) -> None:
    """Tell every dropout of a network which windows of the batch come next."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.share = share
