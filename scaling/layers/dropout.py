"""Dropout whose masks depend on a window's place in the whole batch, not on which process or micro-batch computes it.

    y = x m / (1 - p),   m ~ Bernoulli(1 - p)

On a CPU a mask is a function of a seed, which the generator draws, and of each entry's number in the whole batch. On
other devices each share draws the mask of the whole batch and takes its own rows. Either way the generator advances
alike everywhere, and the sum of the shares' gradients is the gradient of the whole.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from scaling.ops.dropout import NOTHING, Draw, dropout, seed_from


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
        if not self.active:
            return x
        if x.device.type == "cpu":
            return dropout(x, self.draw(x))
        if self.generators is not None:
            return cast(Tensor, _OwnMasks.apply(x, self.p, self.generators, self.share))
        return x * _mask(x, self.p, self.share) if self.draws(x.device) else functional.dropout(x, self.p)

    @property
    def active(self) -> bool:
        """Whether anything is dropped."""
        return self.training and self.p > 0

    def draws(self, device: torch.device) -> bool:
        """Whether masks are drawn here and not by PyTorch, whose own dropout knows no shares and no members.

        On a CPU all are, since PyTorch's generator takes many times as long there.
        """
        return self.generators is not None or (self.active and (device.type == "cpu" or self.share is not None))

    def draw(self, like: Tensor) -> Draw:
        """What decides the next mask on a CPU, for a tensor whose first axis is the share's."""
        if not self.active:
            return NOTHING
        share = self.share or Share(0, 1, 1)
        begin = share.begin * (like.numel() // (share.stop - share.begin))
        if self.generators is not None:
            return Draw(self.p, begin=begin, generators=tuple(self.generators))
        return Draw(self.p, (seed_from(None),), begin)


@torch.no_grad()
def _mask(like: Tensor, p: float, share: Share | None, generator: torch.Generator | None = None) -> Tensor:
    """The whole batch's mask, or the share's rows of it, for a tensor whose first axis is the share's."""
    share = share or Share(0, len(like), len(like))
    rows = len(like) // max(1, share.stop - share.begin)
    whole = like.new_empty((share.total * rows, *like.shape[1:]))
    own = whole.bernoulli_(1 - p, generator=generator).div_(1 - p)[share.begin * rows : share.stop * rows]
    return own.clone() if len(own) < len(whole) else own  # a view would keep the whole for the backward pass


class _OwnMasks(torch.autograd.Function):
    """Masks that each member of a population draws from its own generator, as it would alone."""

    @staticmethod
    def forward(x: Tensor, p: float, generators: list[torch.Generator], share: Share | None) -> Tensor:
        """Never called: only a map over members knows whose mask is whose."""
        raise NotImplementedError

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing to save: the product below is differentiated as such."""

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        p: float,
        generators: list[torch.Generator],
        share: Share | None,
    ) -> tuple[Tensor, int]:
        """(member, batch, ...) with entries dropped."""
        x = x.movedim(in_dims[0] or 0, 0)
        masks = [_mask(own, p, share, generator) for own, generator in zip(x.detach(), generators, strict=True)]
        return x * torch.stack(masks), 0


def take_share(model: nn.Module, share: Share | None) -> None:
    """Tell every dropout of a network which windows of the batch come next."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.share = share
