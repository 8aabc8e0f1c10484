"""Tasks that generate their own data: an environment, its expert, and episodes of the two together."""

from abc import ABC, abstractmethod

import gymnasium
import numpy as np

from scaling.spec import DataSpec
from scaling.store import Episodes, Store, build_once

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
    return build_once(identity, lambda: _play(task, spec))


def _play(task: Task, spec: DataSpec) -> Episodes:
    states: list[np.ndarray] = []
    actions: list[int] = []
    rewards: list[float] = []
    starts = [0]
    for seed in np.random.SeedSequence(spec.seed).generate_state(spec.episodes).tolist():
        state, _ = task.reset(seed=seed)
        over = False
        while not over:
            states.append(state)
            actions.append(task.expert())
            state, reward, terminated, truncated, _ = task.step(np.int64(actions[-1]))
            rewards.append(float(reward))
            over = terminated or truncated
        starts.append(len(actions))
    return Episodes(
        states=np.array(states, np.float32),
        actions=np.array(actions, np.int64),
        rewards=np.array(rewards, np.float32),
        starts=np.array(starts, np.int64),
        terminal=np.ones(spec.episodes, bool),
        about={"env_id": None, "task": type(task).__name__, "choices": int(Task.action_space.n)},
    )
