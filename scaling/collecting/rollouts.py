"""Playing an environment step by step, and shards of whole episodes that depend on their number alone."""

import os
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np

from scaling.collecting.actors import Actor
from scaling.collecting.records import episode_returns
from scaling.collecting.worlds import make, record_type_of

PIECE = 1024
"""Records allocated at once."""


class Walk:
    """An environment played without end; each episode is reset with a number made from the seeds and its own."""

    def __init__(self, env: gymnasium.Env, seeds: tuple[int, ...], episode: int = 0) -> None:
        """Begin before the first step of ``episode``."""
        self.env, self.seeds, self.episode = env, seeds, episode
        self.kind = record_type_of(env)
        self.observation: np.ndarray | None = None
        self._policy = 0

    @property
    def between(self) -> bool:
        """Whether no episode is under way."""
        return self.observation is None

    def play(
        self, records: np.ndarray, actor: Actor, generator: np.random.Generator, policy: int = 0, to_end: bool = False
    ) -> int:
        """Fill ``records``, with ``to_end`` no further than the episode's end; the number of records filled.

        An episode keeps the ``policy`` number with which it began.
        """
        for place in range(len(records)):
            self._step(records[place : place + 1], actor, generator, policy)
            if to_end and self.between:
                return place + 1
        return len(records)

    def _step(self, record: np.ndarray, actor: Actor, generator: np.random.Generator, policy: int) -> None:
        first = self.observation is None
        if self.observation is None:
            seed = np.random.SeedSequence([*self.seeds, self.episode]).generate_state(1)[0]
            self.observation, _ = self.env.reset(seed=int(seed))
            self._policy = policy
        action = actor.act(self.observation, generator)
        after, reward, terminated, truncated, _ = self.env.step(action)
        record[0] = (
            self.observation, action, reward, after, terminated, truncated and not terminated, self._policy, first
        )  # fmt: skip
        self.observation = after
        if terminated or truncated:
            self.observation = None
            self.episode += 1


def returns_of(env: gymnasium.Env, actor: Actor, seeds: tuple[int, ...], episodes: int) -> np.ndarray:
    """(episode,) returns of the actor, as it behaves when it is recorded."""
    walk, generator = Walk(env, seeds), np.random.default_rng(seeds)
    return np.array([episode_returns(_episode(walk, actor, generator))[0] for _ in range(episodes)])


def _episode(walk: Walk, actor: Actor, generator: np.random.Generator) -> np.ndarray:
    pieces: list[np.ndarray] = []
    while not pieces or not walk.between:
        piece = np.zeros(PIECE, walk.kind)
        pieces.append(piece[: walk.play(piece, actor, generator, to_end=True)])
    return np.concatenate(pieces)


@dataclass(frozen=True, eq=False)
class Shard:
    """Whole episodes of one actor, at least ``rows`` steps of them."""

    path: Path
    env_id: str
    actor: Actor
    seeds: tuple[int, ...]
    rows: int

    def make(self) -> None:
        """Play and write the file, whole or not at all."""
        env = make(self.env_id)
        walk, generator = Walk(env, self.seeds), np.random.default_rng(self.seeds)
        episodes: list[np.ndarray] = []
        while sum(map(len, episodes)) < self.rows:
            episodes.append(_episode(walk, self.actor, generator))
        env.close()
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")  # a worker of a killed driver may linger
        with temporary.open("wb") as file:
            np.save(file, np.concatenate(episodes))
        temporary.replace(self.path)
