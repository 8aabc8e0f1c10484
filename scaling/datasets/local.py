"""A task of short memory: at every step, repeat the symbol of ``horizon - 1`` steps ago.

A state is one symbol, -1 or 1 at random. The choices are to wait, right as long as there is nothing to repeat, and
either symbol. Each of the STEPS steps with the right choice adds an equal share to the return, 1 in all. With a
horizon of one the task is Markov; the context beyond the horizon is noise.
"""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from scaling.datasets._task import FIELDS, Task, record
from scaling.errors import UserError
from scaling.spec import DataSpec
from scaling.store import Store

__all__ = ["FIELDS", "Local", "make", "open"]

STEPS = 50
WAIT = 0


class Local(Task):
    """A stream of symbols."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """A new stream."""
        super().reset(seed=seed)
        self.step_number = 0
        self.symbols = self.np_random.integers(2, size=STEPS + 1) * 2 - 1
        return self._state(), {}

    def _state(self) -> np.ndarray:
        return self.symbols[self.step_number : self.step_number + 1].astype(np.float32)

    def expert(self) -> int:
        """The symbol to repeat, 1 for -1 and 2 for 1."""
        origin = self.step_number - self.horizon + 1
        return WAIT if origin < 0 else 1 + int(self.symbols[origin] > 0)

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step."""
        reward = float(int(action) == self.expert()) / STEPS
        self.step_number += 1
        return self._state(), reward, self.step_number == STEPS, False, {}


def make(spec: DataSpec) -> Local:
    """The environment.

    Raises:
        UserError: there would be less to repeat than to wait for.

    """
    if spec.horizon > STEPS // 2:
        raise UserError(f"data.horizon of local must be at most {STEPS // 2}: {spec.horizon}; tmaze has longer ones")
    return Local(spec.horizon)


def open(spec: DataSpec, folder: Path) -> Store:
    """Episodes of the expert."""
    return record(make(spec), "local", spec)
