"""Whether a dataset is what its store says."""

from pathlib import Path

import h5py
import numpy as np

from scaling.building import content_digest, fresh_cache
from scaling.datasets import d4rl
from scaling.downloads import altered
from scaling.recognise import open_path
from scaling.store import Store, groups, returns_to_go

ROWS = 1 << 18
"""Rows looked at together."""


def faults(path: str, kind: str, step_limit: int | None = None) -> list[str]:
    """What is wrong with the dataset at ``path``; what cannot be read at all is an error instead.

    Raises:
        UserError: the dataset cannot be read.

    """
    store = open_path(path, Path(), step_limit)
    wrong = _of_store(store)
    if kind != "store":
        with fresh_cache():
            digest = open_path(path, Path(), step_limit).digest
        if digest != store.digest:
            wrong.append("the store in the cache holds something else than the file; remove the data cache")
    if kind == "d4rl":
        file = d4rl.locate(path, Path())
        wrong += ["the file is not what was downloaded; remove it"] if altered(file) else []
        wrong += _of_file(file)
    return wrong


def _of_store(store: Store) -> list[str]:
    wrong = []
    if content_digest(store.folder, store.about) != store.digest:
        wrong.append("the arrays do not match the digest in the manifest")
    if not all(_summed(store, first, stop) for first, stop in groups(store.starts, ROWS)):
        wrong.append("returns-to-go are not the sums of the rewards")
    return wrong


def _summed(store: Store, first: int, stop: int) -> bool:
    rows = slice(store.starts[first], store.starts[stop])
    expected = returns_to_go(store.rewards[rows], store.starts[first : stop + 1] - store.starts[first])
    return bool(np.allclose(expected, store.rtg[rows], rtol=1e-5, atol=1e-5))


def _of_file(path: Path) -> list[str]:
    """That each next observation is the observation of the next row, inside episodes."""
    with h5py.File(path, "r") as file:
        if "next_observations" not in file or "timeouts" not in file:
            return []
        rows = len(file["observations"])
        for first in range(0, rows - 1, ROWS):
            stop = min(first + ROWS, rows - 1)
            ends = file["terminals"][first:stop].astype(bool) | file["timeouts"][first:stop].astype(bool)
            same = np.isclose(
                file["next_observations"][first:stop], file["observations"][first + 1 : stop + 1], rtol=1e-4, atol=1e-4
            ).all(axis=1)
            if (~same & ~ends).any():
                row = first + int(np.argmax(~same & ~ends))
                return [f"next_observations in row {row} is not the observation of row {row + 1}, of the same episode"]
    return []
