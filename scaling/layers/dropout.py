"""Dropout whose masks depend on a window's place in the whole batch, not on which process or micro-batch computes it.

    y = x m / (1 - p),   m ~ Bernoulli(1 - p)

Where a batch is computed in shares, each share draws the mask of the whole batch and takes its own rows, so that the
generator advances alike everywhere and the sum of the shares' gradients is the gradient of the whole.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
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
        if not self.active:
            return x
        if self.generators is not None:
            return cast(Tensor, _OwnMasks.apply(x, self.p, self.generators))
        if not self.draws(x.device):
            return functional.dropout(x, self.p)
        return x * self.mask(x)

    @property
    def active(self) -> bool:
        """Whether anything is dropped."""
        return self.training and self.p > 0

    def draws(self, device: torch.device) -> bool:
        """Whether masks are drawn here and not by PyTorch, whose own dropout knows no shares and no members.

        On a CPU all are, since PyTorch's generator takes five times as long there.
        """
        return self.generators is not None or (self.active and (device.type == "cpu" or self.share is not None))

    @torch.no_grad()
    def mask(self, like: Tensor) -> Tensor:
        """The whole batch's mask, or the share's rows of it, for a tensor whose first axis is the share's."""
        share = self.share or Share(0, len(like), len(like))
        rows = len(like) // max(1, share.stop - share.begin)
        whole = like.new_empty((share.total * rows, *like.shape[1:]))
        own = _fill(whole, self.p)[share.begin * rows : share.stop * rows]
        return own.clone() if len(own) < len(whole) else own  # a view would keep the whole for the backward pass


def _fill(mask: Tensor, p: float, generator: torch.Generator | None = None) -> Tensor:
    """Fill a contiguous mask; on a CPU with the bits of a NumPy generator whose seed the given one draws."""
    if mask.is_cuda:
        return mask.bernoulli_(1 - p, generator=generator).div_(1 - p)
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    pairs = np.random.SFC64(seed).random_raw(-(-mask.numel() // 2))
    bits = torch.from_numpy(pairs.view(np.int32)[: mask.numel()]).view(mask.shape)
    return torch.ge(bits, min(round(p * 2**32), 2**32 - 1) - 2**31, out=mask).div_(1 - p)


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
            _fill(own, p, generator)
        return x * mask, 0


def take_share(model: nn.Module, share: Share | None) -> None:
    """Tell every dropout of a network which windows of the batch come next."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.share = share
