"""Transitions as fixed-size records: what the log of a training holds and what the shards of rollouts hold."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

CHUNK = 16_384
"""Records read at once."""


def record_type(state: int, action: int) -> np.dtype:
    """One transition; the names are those of the D4RL layout.

    ``policies`` numbers the behaviour policy of the episode. ``first`` marks an episode's first record: where it
    follows a record that ends nothing, the episode before was interrupted.
    """
    return np.dtype(
        [
            ("observations", "<f4", (state,)),
            ("actions", "<f4", (action,)),
            ("rewards", "<f4"),
            ("next_observations", "<f4", (state,)),
            ("terminals", "?"),
            ("timeouts", "?"),
            ("policies", "<i4"),
            ("first", "?"),
        ]
    )


class Log:
    """An append-only file of records, which a crash may leave longer than the checkpoint says."""

    def __init__(self, path: Path, kind: np.dtype, rows: int) -> None:
        """Open for appending after the first ``rows`` records; the rest is cut off."""
        self.path, self.kind, self.rows = path, kind, rows
        self._file = path.open("ab")
        self._file.truncate(rows * kind.itemsize)

    def append(self, records: np.ndarray) -> None:
        """Add records; on disk for certain only after :meth:`sync`."""
        self._file.write(records.tobytes())
        self.rows += len(records)

    def sync(self) -> None:
        """Wait until everything is on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close."""
        self._file.close()


def read(path: Path, kind: np.dtype, first: int, stop: int) -> Iterator[np.ndarray]:
    """Records ``first`` to ``stop`` of a log, a chunk at a time."""
    with path.open("rb") as file:
        file.seek(first * kind.itemsize)
        while first < stop:
            count = min(CHUNK, stop - first)
            yield np.frombuffer(file.read(count * kind.itemsize), kind)
            first += count


def whole_episodes(chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same records without interrupted and unfinished episodes; each array begins with an episode and ends one."""
    carried: np.ndarray | None = None
    for chunk in chunks:
        rows = chunk if carried is None else np.concatenate([carried, chunk])
        starts = np.flatnonzero(rows["first"])
        stops = np.append(starts[1:], len(rows))
        whole = (rows["terminals"] | rows["timeouts"])[stops - 1]
        carried = None if whole[-1] else rows[starts[-1] :]
        kept = rows[np.repeat(whole, stops - starts)]
        if len(kept):
            yield kept


def first_rows(episodes: Iterable[np.ndarray], wanted: int) -> Iterator[np.ndarray]:
    """Whole episodes up to the one in which the row number ``wanted`` lies."""
    left = wanted
    for rows in episodes:
        if left <= 0:
            return
        ends = np.flatnonzero(rows["terminals"] | rows["timeouts"]) + 1
        stop = int(ends[min(int(np.searchsorted(ends, left)), len(ends) - 1)])
        yield rows[:stop]
        left -= stop


def episode_returns(rows: np.ndarray) -> np.ndarray:
    """(episode,) undiscounted returns of whole episodes, summed in float64."""
    if not len(rows):
        return np.zeros(0)
    return np.add.reduceat(rows["rewards"].astype(np.float64), np.flatnonzero(rows["first"]))
