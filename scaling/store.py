"""One dataset on disk: memory-mapped arrays with an episode index, shared by all processes of a node.

A store is a folder of ``.npy`` files and a manifest. It is built once, under a temporary name, and renamed into
place, so that a reader sees either nothing or all of it.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scaling.errors import UserError
from scaling.spec import Space

STORE_VERSION = 1
ARRAYS = ("states", "actions", "rewards", "rtg", "starts", "terminal")


@dataclass(frozen=True, eq=False)
class Episodes:
    """Whole episodes in time order, checked but not yet on disk."""

    states: np.ndarray
    """(transition, state), float32; or single pictures, (transition, side, side), uint8."""
    actions: np.ndarray
    """(transition, action) float32, or (transition,) int64 for discrete actions."""
    rewards: np.ndarray
    """(transition,), float32."""
    starts: np.ndarray
    """(episode + 1,), int64: first transition of each episode, and the number of transitions at the end."""
    terminal: np.ndarray
    """(episode,), bool: ended by the environment, not by a time limit."""
    about: dict[str, Any]
    """What the reader noticed: counts of rows left out, the environment's id where the file names it."""


@dataclass(frozen=True, eq=False)
class Store:
    """A dataset as trials see it; arrays are read-only maps of files."""

    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    rtg: np.ndarray
    """(transition,), float32: undiscounted sum of this and all later rewards of the episode."""
    starts: np.ndarray
    terminal: np.ndarray
    digest: str
    """Content hash of states, actions, rewards and episode ends; independent of file names and compression."""
    about: dict[str, Any]

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
        if not self.discrete:
            return self.actions.shape[1]
        return int(self.about.get("choices") or self.actions.max() + 1)


def returns_to_go(rewards: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """R_t = sum of r_k over k >= t within the episode, in float32 from a float64 sum."""
    total = np.concatenate([[0.0], np.cumsum(rewards, dtype=np.float64)])
    episode_end = np.repeat(starts[1:], np.diff(starts))
    return (total[episode_end] - total[:-1]).astype(np.float32)


def cache_folder() -> Path:
    """Where stores are kept: ``$SCALING_CACHE``, else ``scaling`` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "scaling"
    return Path(os.environ.get("SCALING_CACHE", default))


def build_once(identity: str, read: Callable[[], Episodes], cache: Path | None = None) -> Store:
    """The store of the dataset that ``identity`` names, made with ``read`` unless it was built before.

    Args:
        identity: text that differs whenever the content would; see :func:`file_identity`.
        read: gives the episodes.
        cache: folder of stores, instead of :func:`cache_folder`.

    """
    name = hashlib.sha256(f"{STORE_VERSION}|{identity}".encode()).hexdigest()[:24]
    folder = (cache or cache_folder()) / "stores" / name
    if not folder.is_dir():
        _build(folder, read())
    return open_store(folder)


def file_identity(source: Path) -> str:
    """Names the content of a file by its place, size and time of change."""
    stat = source.stat()
    return f"{source.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"


def open_store(folder: Path) -> Store:
    """The store in ``folder``, mapped into memory."""
    manifest = json.loads((folder / "manifest.json").read_text())
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    return Store(**arrays, digest=manifest["digest"], about=manifest["about"])


def _build(folder: Path, episodes: Episodes) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"cannot write the data cache {folder.parent}: {error.strerror}; "
            "set SCALING_CACHE to a folder that can be written"
        ) from error
    try:
        _write(temporary, episodes)
        temporary.chmod(0o755)  # other users of a shared cache may read it
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process built it first in the other case
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(folder: Path, episodes: Episodes) -> None:
    arrays = {name: getattr(episodes, name) for name in ARRAYS if name != "rtg"}
    arrays["rtg"] = returns_to_go(episodes.rewards, episodes.starts)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    manifest = {"digest": content_digest(episodes), "about": episodes.about}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))


def content_digest(episodes: Episodes) -> str:
    """SHA-256 over every array with its name, type and shape."""
    digest = hashlib.sha256()
    for name in ("states", "actions", "rewards", "starts", "terminal"):
        array = np.ascontiguousarray(getattr(episodes, name))
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.data)
    return digest.hexdigest()
