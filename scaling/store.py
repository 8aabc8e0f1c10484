"""One dataset on disk: memory-mapped arrays with an episode index, shared by all processes of a node.

A store is a folder of ``.npy`` files and a manifest; see :mod:`scaling.building` for how it comes about.
"""

import hashlib
import json
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scaling.errors import UserError
from scaling.spec import Space

STORE_VERSION = 3
ARRAYS = ("states", "actions", "rewards", "rtg", "starts", "terminal")


@dataclass(frozen=True, eq=False)
class Store:
    """A dataset as trials see it; arrays are read-only maps of files."""

    states: np.ndarray
    """(transition, state), float32; or single pictures, (transition, side, side), uint8."""
    actions: np.ndarray
    """(transition, action) float32, or (transition,) int64 for discrete actions."""
    rewards: np.ndarray
    """(transition,), float32."""
    rtg: np.ndarray
    """(transition,), float32: undiscounted sum of this and all later rewards of the episode."""
    starts: np.ndarray
    """(episode + 1,), int64: first transition of each episode, and the number of transitions at the end."""
    terminal: np.ndarray
    """(episode,), bool: ended by the environment, not by a time limit."""
    policies: np.ndarray | None
    """(episode,), int32: number of the policy that recorded it, where that is known."""
    digest: str
    """Content hash of states, actions, rewards and episode ends; independent of file names and compression."""
    about: dict[str, Any]
    """What the reader noticed: counts of rows left out, the environment's id where the file names it."""
    folder: Path
    """Where the arrays lie."""

    @property
    def lengths(self) -> np.ndarray:
        """(episode,) transitions of each episode."""
        return np.diff(self.starts)

    @property
    def returns(self) -> np.ndarray:
        """(episode,) undiscounted returns."""
        return self.rtg[self.starts[:-1]]

    @property
    def discrete(self) -> bool:
        """Whether actions are choices from a list rather than vectors."""
        return self.actions.ndim == 1

    @property
    def image(self) -> bool:
        """Whether states are pictures."""
        return self.states.ndim == 3

    @property
    def space(self) -> Space:
        """What the dataset imposes on the network."""
        return Space(
            state=self.states.shape[1],
            action=self.action_size,
            discrete=self.discrete,
            image=self.image,
        )

    @property
    def action_size(self) -> int:
        """Components of an action, or the number of choices: as the reader says, else one more than the largest."""
        return int(self.about["choices"]) if self.discrete else self.actions.shape[1]


def groups(starts: np.ndarray, rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of whole episodes with about so many transitions each."""
    first, count = 0, len(starts) - 1
    while first < count:
        stop = int(np.searchsorted(starts, starts[first] + rows, side="right")) - 1
        stop = min(max(stop, first + 1), count)
        yield first, stop
        first = stop


def returns_to_go(rewards: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """R_t = sum of r_k over k >= t within the episode, in float32 from a float64 sum."""
    total = np.concatenate([[0.0], np.cumsum(rewards, dtype=np.float64)])
    episode_end = np.repeat(starts[1:], np.diff(starts))
    return (total[episode_end] - total[:-1]).astype(np.float32)


def open_store(folder: Path) -> Store:
    """The store in ``folder``, mapped into memory.

    Raises:
        UserError: it is not a whole store of this version, whose arrays fit together.

    """
    try:
        store = _opened(folder)
        wrong = [name for name, fits in _fitting(store).items() if not fits]
    except (OSError, ValueError, KeyError, TypeError, EOFError, tokenize.TokenError) as error:
        raise UserError(f"{folder}: not a whole store ({error}); make it again with 'scaling data convert'") from error
    if wrong:
        raise UserError(
            f"{folder}: not a whole store (what is wrong is its {', '.join(wrong)}); make it again with "
            "'scaling data convert'"
        )
    return store


def _opened(folder: Path) -> Store:
    manifest = json.loads((folder / "manifest.json").read_text())
    if manifest["version"] != STORE_VERSION:
        raise UserError(
            f"{folder}: a store of version {manifest['version']}, this is version {STORE_VERSION}; "
            "make it again with 'scaling data convert'"
        )
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    labels = folder / "policies.npy"
    policies = np.load(labels, mmap_mode="r") if labels.exists() else None
    return Store(**arrays, policies=policies, digest=manifest["digest"], about=manifest["about"], folder=folder)


def _fitting(store: Store) -> dict[str, bool]:
    """Whether each part of a store is as :class:`Store` says."""
    rows, episodes = len(store.rewards), len(store.terminal)
    starts, policies, about = store.starts, store.policies, store.about
    vectors, pictures = ((2, np.dtype(np.float32)), (3, np.dtype(np.uint8)))
    choices = about.get("choices") if isinstance(about, dict) else None
    return {
        "states": (store.states.ndim, store.states.dtype) in (vectors, pictures) and len(store.states) == rows,
        "actions": (store.actions.ndim, store.actions.dtype) in (vectors, (1, np.dtype(np.int64)))
        and len(store.actions) == rows,
        "rewards": store.rewards.shape == store.rtg.shape == (rows,) and store.rewards.dtype == store.rtg.dtype,
        "starts": starts.shape == (episodes + 1,)
        and starts.dtype == np.int64
        and (starts[0], starts[-1]) == (0, rows)
        and bool((np.diff(starts) > 0).all()),
        "terminal": store.terminal.dtype == bool and store.terminal.ndim == 1 and episodes > 1,
        "policies": policies is None
        or (policies.shape == (episodes,) and policies.dtype == np.int32 and bool((policies >= 0).all())),
        "digest": isinstance(store.digest, str) and len(store.digest) == hashlib.sha256().digest_size * 2,
        "about": isinstance(about, dict) and (store.actions.ndim != 1 or (isinstance(choices, int) and choices > 0)),
    }
