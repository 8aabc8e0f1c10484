"""How a network sees an episode under way: through a window, or through its recurrent state.

A window holds the last ``context`` steps, as in training: when it slides, the first of them is where the network's
memory and the sub-sequences of a local branch begin. A recurrent state holds all steps since the episode began and
never begins anew; sub-sequences are counted from the first step of the episode. The two agree until the window
slides. Afterwards the recurrent network remembers more than it ever did in training: it is asked to extrapolate.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from scaling.layers.sequence import RecurrentModel
from scaling.spec import Space
from scaling.windows import Batch


def tensors(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The model's inputs: rtg, state, action, timestep."""
    arrays = (batch.rtg, batch.state, batch.action, batch.timestep)
    return tuple(torch.from_numpy(array).to(device, non_blocking=True) for array in arrays)  # type: ignore[return-value]


class History:
    """Everything the episodes have shown so far, as the network sees it."""

    def __init__(self, count: int, limit: int, space: Space) -> None:
        self.rtg = np.zeros((count, limit), np.float32)
        self.state = np.zeros((count, limit, space.state), np.float32)
        self.action = (
            np.zeros((count, limit), np.int64) if space.discrete else np.zeros((count, limit, space.action), np.float32)
        )

    def window(self, alive: np.ndarray, first: int, stop: int) -> Batch:
        """Steps ``first`` to ``stop`` of the running episodes; the newest action is still zero and never seen."""
        seen = slice(first, stop)
        rtg = self.rtg[alive, seen]
        timestep = np.broadcast_to(np.arange(first, stop), rtg.shape).copy()
        return Batch(rtg, self.state[alive, seen], self.action[alive, seen], timestep, np.ones(rtg.shape, bool))


class Window:
    """Sees the last ``context`` steps of the running episodes, which have equal lengths, since all began at once."""

    def __init__(self, model: nn.Module, history: History, context: int, device: torch.device) -> None:
        self.model, self.history, self.context, self.device = model, history, context, device

    def predict(self, alive: np.ndarray, step: int) -> Float[Tensor, "running action"]:
        """Actions for the running episodes."""
        batch = self.history.window(alive, max(0, step + 1 - self.context), step + 1)
        predicted: Tensor = self.model(*tensors(batch, self.device))
        return predicted[:, -1]


class Recurrent:
    """Sees every step once and remembers; an ended episode is carried along."""

    def __init__(self, model: nn.Module, history: History, context: int, device: torch.device) -> None:
        assert isinstance(model, RecurrentModel)
        self.model, self.history, self.device = model, history, device
        self.everyone = np.ones(len(history.rtg), bool)
        self.state: list[Any] = model.initial_state(len(history.rtg))

    def predict(self, alive: np.ndarray, step: int) -> Float[Tensor, "running action"]:
        """Actions for the running episodes: the last step's action is taken in, then this step's rtg and state."""
        if step > 0:
            self._take(self._tokens(step - 1)[:, 2])
        rtg, state, _ = self._tokens(step).unbind(1)
        self._take(rtg)
        predicted: Tensor = self.model.head.predict(self._take(state))
        return predicted[torch.from_numpy(alive).to(self.device)]

    def _tokens(self, step: int) -> Float[Tensor, "episode 3 width"]:
        tokens: Tensor = self.model.stem(*tensors(self.history.window(self.everyone, step, step + 1), self.device))
        return tokens

    def _take(self, token: Float[Tensor, "episode width"]) -> Tensor:
        out, self.state = self.model.step(self.state, token)
        return out
