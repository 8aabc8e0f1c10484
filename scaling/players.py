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

from scaling.batches import tensors
from scaling.layers.sequence import RecurrentModel
from scaling.spec import ModelSpec, Space
from scaling.windows import Batch


class History:
    """The last steps that the episodes have shown, as the network sees them; earlier ones are forgotten."""

    def __init__(self, count: int, span: int, model: ModelSpec, space: Space) -> None:
        self.before = model.frames - 1 if space.image else 0
        self.last_timestep = model.max_timestep - 1
        self.span, self.filled, self.steps = span, 0, 0
        self.rtg = np.zeros((count, span), np.float32)
        shape = (space.state, space.state) if space.image else (space.state,)
        self.state = np.zeros((count, self.before + span, *shape), np.uint8 if space.image else np.float32)
        self.action = np.zeros((count, span) if space.discrete else (count, span, space.action), np.float32)
        if space.discrete:
            self.action = self.action.astype(np.int64)

    def show(self, rtg: np.ndarray, state: np.ndarray) -> None:
        """A step begins: (episode,) return-to-go and (episode, ...) state."""
        if self.filled == self.span:
            for array in (self.rtg, self.state, self.action):
                array[:, :-1] = array[:, 1:]
        else:
            self.filled += 1
        self.steps += 1
        self.rtg[:, self.filled - 1] = rtg
        self.state[:, self.before + self.filled - 1] = state
        self.action[:, self.filled - 1] = 0

    def act(self, alive: np.ndarray, action: np.ndarray) -> None:
        """The running episodes' actions at this step."""
        self.action[alive, self.filled - 1] = action

    def window(self, alive: np.ndarray, first: int = 0) -> Batch:
        """The remembered steps of the running episodes from number ``first`` on; the newest action is still zero."""
        return self._seen(alive, first, self.filled)

    def step(self, alive: np.ndarray, back: int) -> Batch:
        """One step, the newest or one ``back`` from it."""
        return self._seen(alive, self.filled - 1 - back, self.filled - back)

    def _seen(self, alive: np.ndarray, first: int, stop: int) -> Batch:
        seen = slice(first, stop)
        rtg = self.rtg[alive, seen]
        forgotten = self.steps - self.filled
        timestep = np.minimum(np.arange(forgotten + first, forgotten + stop), self.last_timestep)
        return Batch(
            rtg,
            self.state[alive, first : stop + self.before],
            self.action[alive, seen],
            np.broadcast_to(timestep, rtg.shape).copy(),
            np.ones(rtg.shape, bool),
        )


class Window:
    """Sees the last ``context`` steps of the running episodes, which have equal lengths, since all began at once."""

    def __init__(self, model: nn.Module, history: History, device: torch.device) -> None:
        self.model, self.history, self.device = model, history, device

    def predict(self, alive: np.ndarray) -> Float[Tensor, "running action"]:
        """Actions for the running episodes."""
        predicted: Tensor = self.model(*tensors(self.history.window(alive), self.device))
        return predicted[:, -1]


class Recurrent:
    """Sees every step once and remembers; an ended episode is carried along."""

    SPAN = 2
    """Steps that must be at hand: this one, and the last one's action."""

    def __init__(self, model: nn.Module, history: History, device: torch.device) -> None:
        assert isinstance(model, RecurrentModel)
        self.model, self.history, self.device = model, history, device
        self.everyone = np.ones(len(history.rtg), bool)
        self.state: list[Any] = model.initial_state(len(history.rtg))

    def predict(self, alive: np.ndarray) -> Float[Tensor, "running action"]:
        """Actions for the running episodes: the last step's action is taken in, then this step's rtg and state."""
        if self.history.steps > 1:
            self._take(self._tokens(back=1)[:, 2])
        rtg, state, _ = self._tokens(back=0).unbind(1)
        self._take(rtg)
        predicted: Tensor = self.model.head.predict(self._take(state))
        return predicted[torch.from_numpy(alive).to(self.device)]

    def _tokens(self, back: int) -> Float[Tensor, "episode 3 width"]:
        tokens: Tensor = self.model.stem(*tensors(self.history.step(self.everyone, back), self.device))
        return tokens

    def _take(self, token: Float[Tensor, "episode width"]) -> Tensor:
        out, self.state = self.model.step(self.state, token)
        return out
