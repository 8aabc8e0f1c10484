"""Which episodes a run may see, and windows of them as arrays.

A window starts at any transition and covers ``context`` timesteps; where its episode ends sooner, the rest is padding
on the right, marked by a mask. During a rollout the window starts at the episode's first step until it is full and
then slides, so position p of a window means the same in training and in evaluation: p earlier steps are visible.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from scaling.errors import UserError
from scaling.spec import DataSpec, RunSpec
from scaling.store import Store

SPLIT_SEED = 20240602
"""Chooses the held-out episodes, the same for every run on a dataset."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows, first axis window, second axis timestep; padding is zero everywhere."""

    rtg: np.ndarray
    """(window, context), divided by the run's scale."""
    state: np.ndarray
    """(window, context, state), normalised; or single pictures, (window, frames - 1 + context, side, side), of which
    the state at position p is made of those from p to p + frames - 1."""
    action: np.ndarray
    """(window, context, action), or (window, context) for discrete actions."""
    timestep: np.ndarray
    """(window, context), steps since the episode began."""
    mask: np.ndarray
    """(window, context), true where there is a transition."""

    def rows(self, which: np.ndarray) -> "Batch":
        """Some of the windows."""
        return Batch(*(getattr(self, field.name)[which] for field in dataclasses.fields(self)))


@dataclass(frozen=True, eq=False)
class Normaliser:
    """Mean and standard deviation of each state component over a training subset."""

    mean: np.ndarray
    std: np.ndarray

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """(state - mean) / (std + 1e-6), as in the Decision Transformer's code."""
        return ((state - self.mean) / (self.std + 1e-6)).astype(np.float32)


def held_out_episodes(store: Store, spec: DataSpec) -> np.ndarray:
    """Episodes that no run trains on, ascending; at least one."""
    count = len(store.terminal)
    size = min(max(1, round(spec.held_out * count)), count - 1)
    return np.sort(np.random.default_rng(SPLIT_SEED).permutation(count)[:size])


def training_episodes(store: Store, spec: DataSpec) -> np.ndarray:
    """The first ``fraction`` of the remaining episodes in the random order number ``draw``, ascending.

    Raises:
        UserError: the fraction holds no whole episode.

    """
    rest = np.setdiff1d(np.arange(len(store.terminal)), held_out_episodes(store, spec))
    order = np.random.default_rng([SPLIT_SEED, spec.draw]).permutation(rest)
    kept = round(spec.fraction * len(rest))
    if kept < 1:
        raise UserError(
            f"data.fraction {spec.fraction:g} of {len(rest)} training episodes holds no episode; "
            f"use at least {1 / len(rest):.2g}"
        )
    return np.sort(order[:kept])


def check_fits(store: Store, spec: RunSpec) -> None:
    """Refuse a run whose windows the dataset cannot fill.

    Raises:
        UserError: the context exceeds every episode, or an episode exceeds the timestep embedding.

    """
    longest = int(store.lengths.max())
    if spec.model.context > longest:
        raise UserError(
            f"model.context {spec.model.context} is longer than every episode; the longest has {longest} steps"
        )
    if longest > spec.model.max_timestep:
        raise UserError(
            f"model.max_timestep {spec.model.max_timestep} is too small: the longest episode has {longest} steps"
        )
    if spec.data.starts == "episode" and longest > spec.model.context:
        raise UserError(
            f"data.starts episode would never show what lies beyond model.context {spec.model.context}: the longest "
            f"episode has {longest} steps; use any, or a longer context"
        )


class Windows:
    """Windows over some episodes of a store."""

    def __init__(self, store: Store, episodes: np.ndarray, spec: RunSpec) -> None:
        self.store = store
        self.context, self.frames = spec.model.context, spec.model.frames
        self.rtg_scale, self.starts = spec.data.rtg_scale, spec.data.starts
        self.lengths = store.lengths[episodes]
        self._first = store.starts[episodes]
        self._before = np.concatenate([[0], np.cumsum(self.lengths)])

    def __len__(self) -> int:
        """Number of transitions, hence of possible windows."""
        return int(self._before[-1])

    def normaliser(self) -> Normaliser:
        """State statistics over exactly these episodes; pictures have none."""
        if self.store.image:
            return Normaliser(np.zeros(0), np.ones(0))
        states = self.store.states[self._rows()].astype(np.float64)
        return Normaliser(states.mean(axis=0), states.std(axis=0))

    def actions(self) -> np.ndarray:
        """The action of every transition of these episodes."""
        return self.store.actions[self._rows()]

    def _rows(self) -> np.ndarray:
        """The store's row of every transition."""
        return np.repeat(self._first - self._before[:-1], self.lengths) + np.arange(len(self))

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """``count`` window starts, each transition equally likely, or each episode."""
        if self.starts == "episode":
            return self._before[generator.integers(0, len(self.lengths), count)]
        return generator.integers(0, len(self), count)

    @property
    def possible(self) -> int:
        """Places where a training window may start."""
        return len(self.lengths) if self.starts == "episode" else len(self)

    def mean_steps(self) -> float:
        """Mean number of timesteps in a window, over all that may be drawn."""
        full = np.minimum(self.lengths, self.context)
        if self.starts == "episode":
            return float(full.mean())
        short_starts = full * (full + 1) / 2
        return float((short_starts + (self.lengths - full) * self.context).sum() / len(self))

    def tiles(self) -> np.ndarray:
        """Starts of windows that cover every transition exactly once."""
        per_episode = -(-self.lengths // self.context)
        before = np.concatenate([[0], np.cumsum(per_episode)])
        within = np.arange(before[-1]) - np.repeat(before[:-1], per_episode)
        return np.repeat(self._before[:-1], per_episode) + within * self.context

    def gather(self, starts: np.ndarray, normalise: Normaliser) -> Batch:
        """The windows that begin at these transitions, counted within the chosen episodes."""
        episode = np.searchsorted(self._before, starts, side="right") - 1
        timestep = (starts - self._before[episode])[:, None] + np.arange(self.context)
        mask = timestep < self.lengths[episode][:, None]
        timestep = np.where(mask, timestep, 0)
        row = self._first[episode][:, None] + timestep
        if self.store.image:
            state = self._pictures(episode, starts - self._before[episode])
        else:
            state = normalise(self.store.states[row]) * mask[..., None]
        action = self.store.actions[row]
        return Batch(
            rtg=self.store.rtg[row] * mask / np.float32(self.rtg_scale),
            state=state,
            action=action * (mask if action.ndim == 2 else mask[..., None]),
            timestep=timestep,
            mask=mask,
        )

    def _pictures(self, episode: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Each picture of a window once, black before the episode began and after it ended."""
        step = first[:, None] + np.arange(1 - self.frames, self.context)
        there = (step >= 0) & (step < self.lengths[episode][:, None])
        row = self._first[episode][:, None] + np.where(there, step, 0)
        return self.store.states[row] * there[..., None, None].astype(np.uint8)
