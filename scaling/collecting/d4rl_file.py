"""A file in the D4RL layout, written as a stream under a temporary name."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from scaling.collecting.records import episode_returns

COLUMNS = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts", "policies")
CHUNK = 4096
"""Rows per HDF5 chunk."""


@dataclass(frozen=True)
class Content:
    """What a file holds."""

    rows: int
    episodes: int
    mean_return: float | None
    """Nothing without episodes."""


def write(path: Path, env_id: str, origin: str, kind: np.dtype, episodes: Iterable[np.ndarray]) -> Content:
    """Write whole episodes.

    Args:
        path: the file to make or replace.
        env_id: kept as an attribute.
        origin: names what the rows are made from; see :func:`content`.
        kind: type of the records.
        episodes: arrays of records, each of whole episodes, in time order.

    """
    temporary = path.with_name(f".{path.name}.partial")
    returns: list[np.ndarray] = []
    with h5py.File(temporary, "w") as file:
        for name in COLUMNS:
            base, shape = kind[name].subdtype or (kind[name], ())
            file.create_dataset(name, (0, *shape), base, maxshape=(None, *shape), chunks=(CHUNK, *shape))
        for rows in episodes:
            _append(file, rows)
            returns.append(episode_returns(rows))
        every = np.concatenate([np.zeros(0), *returns])
        found = Content(len(file["rewards"]), len(every), float(every.mean()) if len(every) else None)
        file.attrs.update(env_id=env_id, origin=origin, content=json.dumps(vars(found)))
    temporary.replace(path)
    return found


def _append(file: h5py.File, rows: np.ndarray) -> None:
    for name in COLUMNS:
        before = len(file[name])
        file[name].resize(before + len(rows), axis=0)
        file[name][before:] = rows[name]


def content(path: Path, origin: str) -> Content | None:
    """What the file holds, if it exists and was made from ``origin``."""
    if not path.is_file():
        return None
    with h5py.File(path, "r") as file:
        return Content(**json.loads(file.attrs["content"])) if file.attrs.get("origin") == origin else None
