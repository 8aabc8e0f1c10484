"""The loss on held-out episodes."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from scaling.batches import Batches, Tensors

ROOM = 2**25
"""Bytes of held-out windows that a run may keep."""


def summed_loss(
    predicted: Float[Tensor, "batch time action"], action: Tensor, mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, ""]:
    """Action loss added over timesteps that are not padding.

    Squared error averaged over the action's components, or cross-entropy for discrete actions.
    """
    if action.is_floating_point():
        per_step = (predicted.float() - action).square().mean(-1)
    else:
        per_step = functional.cross_entropy(predicted.float().transpose(1, 2), action, reduction="none")
    return torch.where(mask, per_step, 0.0).sum()


class HeldOut:
    """Mean action loss over fixed episodes, each transition counted once."""

    def __init__(self, batches: Batches, size: int) -> None:
        tiles = batches.windows.tiles()
        self.batches, self.windows = batches, batches.windows
        self.pieces = np.array_split(tiles, max(1, -(-len(tiles) // size)))
        self.transitions = len(self.windows)
        self._gathered: dict[int, tuple[Tensors, Tensor]] = {}
        """Windows by the number of their piece, as far as they have room."""

    @torch.no_grad()
    def summed(self, model: nn.Module, part: int = 0, parts: int = 1) -> Float[Tensor, ""]:
        """The loss without dropout, added over transitions, or one of several parts of the sum, in double precision."""
        was_training = model.training
        model.eval()
        total = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)
        for number in range(part, len(self.pieces), parts):
            (rtg, state, action, timestep), mask = self._piece(number)
            total += summed_loss(model(rtg, state, action, timestep), action, mask).double()
        model.train(was_training)
        return total

    def _piece(self, number: int) -> tuple[Tensors, Tensor]:
        """Some windows, gathered anew where all of them would fill a memory, as pictures do."""
        if number in self._gathered:
            return self._gathered[number]
        inputs, mask = self.batches(self.pieces[number])
        if sum(x.nbytes for x in inputs) * len(self.pieces) <= ROOM:
            self._gathered[number] = inputs, mask
        return inputs, mask
