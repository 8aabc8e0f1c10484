"""A T-maze: a clue at the first step decides the turn at the last (Bakker 2001; passive, as in Ni et al. 2023).

A state is (clue, junction, noise): the clue is -1 or 1 at the first step and 0 afterwards; the junction is 1 at the
last step of the corridor and 0 before; the noise is -1, 0 or 1 at random. The choices are to go on, to turn left, to
turn right. The return is 1 for the turn that the clue asked for and 0 for anything else. Nothing but the first state
tells the turns apart, so a network that has forgotten it is right as often as its turn is asked for, half of the
time on average. ``data.horizon`` is the number of steps; each is three tokens.
"""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from scaling.datasets._task import FIELDS, Task, record
from scaling.errors import UserError
from scaling.spec import DataSpec
from scaling.store import Store

__all__ = ["FIELDS", "TMaze", "make", "open"]

ON, LEFT, RIGHT = 0, 1, 2


class TMaze(Task):
    """A corridor of ``horizon`` steps, the last of them the junction."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """A new clue."""
        super().reset(seed=seed)
        self.step_number = 0
        self.clue = int(self.np_random.integers(2)) * 2 - 1
        return self._state(), {}

    def _state(self) -> np.ndarray:
        clue = self.clue if self.step_number == 0 else 0
        junction = self.step_number == self.horizon - 1
        return np.array([clue, junction, self.np_random.integers(-1, 2)], np.float32)

    def expert(self) -> int:
        """On, until the junction."""
        if self.step_number < self.horizon - 1:
            return ON
        return LEFT if self.clue < 0 else RIGHT

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step; a wrong choice ends the episode."""
        right = int(action) == self.expert()
        at_junction = self.step_number == self.horizon - 1
        self.step_number += 1
        return self._state(), float(right and at_junction), at_junction or not right, False, {}


def make(spec: DataSpec) -> TMaze:
    """The environment.

    Raises:
        UserError: the corridor has no room for both clue and junction.

    """
    if spec.horizon < 2:
        raise UserError(f"data.horizon of a tmaze must be at least 2, the clue and the junction: {spec.horizon}")
    return TMaze(spec.horizon)


def open(spec: DataSpec, folder: Path) -> Store:
    """Episodes of the expert."""
    return record(make(spec), "tmaze", spec)
