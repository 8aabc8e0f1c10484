"""Windows of a run's episodes as arrays.

A window starts at any transition and covers ``context`` timesteps; where its episode ends sooner, the rest is padding
on the right, marked by a mask. During a rollout the window starts at the episode's first step until it is full and
then slides, so position p of a window means the same in training and in evaluation: p earlier steps are visible.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from scaling.errors import UserError
from scaling.spec import RunSpec
from scaling.store import Store, groups
from scaling.subsets import Segments

PIECE_BYTES = 32 << 20
"""About how much of the states is looked at together, so that memory does not grow with the dataset."""


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


@dataclass(frozen=True, eq=False)
class Normaliser:
    """Mean and standard deviation of each state component over a training subset."""

    mean: np.ndarray
    std: np.ndarray

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """(state - mean) / (std + 1e-6), as in the Decision Transformer's code."""
        return ((state - self.mean) / (self.std + 1e-6)).astype(np.float32)


def check_fits(store: Store, spec: RunSpec) -> None:
    """Refuse a run whose windows the dataset cannot fill.

    Raises:
        UserError: the context exceeds every episode, an episode exceeds the timestep embedding, or noise is no
            probability.

    """
    if store.discrete and spec.data.action_noise > 1:
        raise UserError(f"data.action_noise is a probability where actions are choices: {spec.data.action_noise}")
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

    def __init__(self, store: Store, episodes: np.ndarray, spec: RunSpec, segments: Segments | None = None) -> None:
        self.store = store
        self.context, self.frames = spec.model.context, spec.model.frames
        self.rtg_scale, self.starts = spec.data.rtg_scale, spec.data.starts
        self.episodes = episodes
        if segments is None:
            segments = np.zeros(len(episodes), np.int64), store.lengths[episodes]
        self.skipped, self.lengths = segments
        self.first = store.starts[episodes] + self.skipped
        self.before = np.concatenate([[0], np.cumsum(self.lengths)])

    def __len__(self) -> int:
        """Number of transitions, hence of possible windows."""
        return int(self.before[-1])

    def normaliser(self) -> Normaliser:
        """State statistics over exactly these transitions; pictures have none."""
        if self.store.image:
            return Normaliser(np.zeros(0), np.ones(0))
        total = sum(self.store.states[rows].sum(axis=0, dtype=np.float64) for rows in self.rows())
        mean = total / len(self)
        squares = sum(np.square(self.store.states[rows] - mean).sum(axis=0) for rows in self.rows())
        return Normaliser(mean, np.sqrt(squares / len(self)))

    def actions(self) -> Iterator[np.ndarray]:
        """The actions of these episodes, a piece at a time."""
        return (self.store.actions[rows] for rows in self.rows())

    def rows(self) -> Iterator[np.ndarray]:
        """The store's row of every transition, a piece at a time."""
        for begin, stop in groups(self.before, max(1, PIECE_BYTES // self.store.states[:1].nbytes)):
            lengths, before = self.lengths[begin:stop], self.before[begin:stop]
            yield np.repeat(self.first[begin:stop] - before, lengths) + np.arange(before[0], self.before[stop])

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """``count`` window starts, each transition equally likely, or each episode."""
        if self.starts == "episode":
            return self.before[generator.integers(0, len(self.lengths), count)]
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
        return np.repeat(self.before[:-1], per_episode) + within * self.context

    def steps(self, starts: np.ndarray) -> int:
        """Transitions in the windows that begin at these, padding left out."""
        left = self.before[np.searchsorted(self.before, starts, side="right")] - starts
        return int(np.minimum(left, self.context).sum())

    def gather(self, starts: np.ndarray, normalise: Normaliser) -> Batch:
        """The windows that begin at these transitions, counted within the chosen episodes."""
        episode = np.searchsorted(self.before, starts, side="right") - 1
        step = (starts - self.before[episode])[:, None] + np.arange(self.context)
        mask = step < self.lengths[episode][:, None]
        step = np.where(mask, step, 0)
        row = self.first[episode][:, None] + step
        if self.store.image:
            state = self._pictures(episode, starts - self.before[episode])
        else:
            state = normalise(self.store.states[row]) * mask[..., None]
        action = self.store.actions[row]
        return Batch(
            rtg=self.store.rtg[row] * mask / np.float32(self.rtg_scale),
            state=state,
            action=action * (mask if action.ndim == 2 else mask[..., None]),
            timestep=np.where(mask, self.skipped[episode][:, None] + step, 0),
            mask=mask,
        )

    def _pictures(self, episode: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Each picture of a window once, black before the episode began and after its last transition that is seen."""
        step = first[:, None] + np.arange(1 - self.frames, self.context)
        there = (step >= -self.skipped[episode][:, None]) & (step < self.lengths[episode][:, None])
        row = self.first[episode][:, None] + np.where(there, step, 0)
        return self.store.states[row] * there[..., None, None].astype(np.uint8)
