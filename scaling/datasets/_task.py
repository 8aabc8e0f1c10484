"""Tasks that generate their own data: an environment, its expert, and episodes of the two together."""

from abc import ABC, abstractmethod

import gymnasium
import numpy as np

from scaling.building import build_once
from scaling.source import INSIDE, TERMINAL, Piece, Source
from scaling.spec import DataSpec
from scaling.store import Store

TASK_VERSION = 2
"""Raised when any task changes, so that old stores are not taken for new ones."""

FIELDS = ("horizon", "episodes", "seed")
"""What a generated dataset is made from."""


class Task(gymnasium.Env[np.ndarray, np.int64], ABC):
    """An environment with three choices that knows the right one; returns lie between 0 and 1."""

    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self, horizon: int) -> None:
        self.horizon = horizon

    @abstractmethod
    def expert(self) -> int:
        """The right choice now."""


def record(task: Task, name: str, spec: DataSpec) -> Store:
    """The store of ``spec.episodes`` episodes of the task's expert, each reset with a number drawn from the seed."""
    identity = f"{name}|{TASK_VERSION}|{spec.horizon}|{spec.episodes}|{spec.seed}"
    return build_once(lambda: identity, lambda: _play(task, spec))


def _play(task: Task, spec: DataSpec) -> Source:
    states: list[np.ndarray] = []
    actions: list[int] = []
    rewards: list[float] = []
    ends: list[int] = []
    for seed in np.random.SeedSequence(spec.seed).generate_state(spec.episodes).tolist():
        state, _ = task.reset(seed=seed)
        over = False
        while not over:
            states.append(state)
            actions.append(task.expert())
            state, reward, terminated, truncated, _ = task.step(np.int64(actions[-1]))
            rewards.append(float(reward))
            over = terminated or truncated
            ends.append(TERMINAL if over else INSIDE)
    piece = Piece(
        states=np.array(states, np.float32),
        actions=np.array(actions, np.int64),
        rewards=np.array(rewards, np.float32),
        ends=np.array(ends, np.uint8),
    )
    name = type(task).__name__
    return Source(name, [piece], {"env_id": None, "task": name, "choices": int(Task.action_space.n)})
