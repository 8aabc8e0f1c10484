"""A dataset written in a format that others read.

A store keeps what sequence models are trained on: no observation after an episode's last action. Formats that want one
get the last state again, and say so.
"""

import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from gymnasium.spaces import Box, Discrete

from scaling.building import build
from scaling.errors import UserError
from scaling.recognise import NAMED
from scaling.source import TERMINAL, TIMEOUT, Source, pieces_of
from scaling.store import Store

CHUNK = 4096
"""Rows of an HDF5 chunk."""
MINARI = "minari:"
Writer = Callable[[Store, Path], None]


def export(store: Store, target: str) -> str:
    """Write the dataset and say where it went.

    Args:
        store: the dataset.
        target: a file that ends in ``.hdf5`` or ``.parquet``, a name such as ``minari:user/logs-v0``, or the folder of
            a store.

    Raises:
        UserError: something is there already, or the format cannot hold such data.

    """
    if target.startswith(MINARI):
        return _write_minari(store, target.removeprefix(MINARI))
    path = Path(target).expanduser()
    if path.exists():
        raise UserError(f"{path} is there already; choose another name, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    writers: dict[str, Writer] = {".hdf5": _write_d4rl, ".h5": _write_d4rl, ".parquet": _write_arrow}
    if path.suffix in writers:
        _at_once(path, lambda temporary: writers[path.suffix](store, temporary))
    elif path.suffix:
        raise UserError(f"{path}: cannot write {path.suffix}; use {', '.join(writers)}, {MINARI}NAME-v0 or a folder")
    else:
        build(path, Source(str(path), pieces_of(store), dict(store.about)))
    return str(path)


def _at_once(path: Path, write: Callable[[Path], None]) -> None:
    """The file appears when it is whole."""
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        write(temporary)
        shutil.move(temporary, path)


def _write_d4rl(store: Store, path: Path) -> None:
    """Flat arrays in time order (Fu et al. 2020), with ``policies`` where they are known."""
    arrays = {"observations": store.states, "actions": store.actions, "rewards": store.rewards}
    flags = {"terminals": TERMINAL, "timeouts": TIMEOUT}
    with h5py.File(path, "w") as file:
        if store.about.get("env_id"):
            file.attrs["env_id"] = store.about["env_id"]
        if store.discrete:
            file.attrs["choices"] = store.action_size
        rows = len(store.rewards)
        for key, array in arrays.items():
            chunk = (min(rows, CHUNK if array.ndim < 3 else 64), *array.shape[1:])
            file.create_dataset(key, (rows, *array.shape[1:]), array.dtype, chunks=chunk)
        for key in flags:
            file.create_dataset(key, (rows,), bool)
        if store.policies is not None:
            file.create_dataset("policies", (rows,), np.int32)
        first = 0
        for piece in pieces_of(store):
            into = slice(first, first + len(piece.rewards))
            file["observations"][into], file["actions"][into] = piece.states, piece.actions
            file["rewards"][into] = piece.rewards
            for key, meaning in flags.items():
                file[key][into] = piece.ends == meaning
            if piece.policies is not None:
                file["policies"][into] = piece.policies
            first = into.stop


def _write_arrow(store: Store, path: Path) -> None:
    """A row per step; see :mod:`scaling.datasets.arrow`."""
    if store.image:
        raise UserError(f"{path}: Parquet is for vectors; pictures go into .hdf5 or a folder")
    writer: pq.ParquetWriter | None = None
    first = 0
    try:
        for piece in pieces_of(store):
            stop = first + len(piece.rewards)
            episode = np.searchsorted(store.starts, np.arange(first, stop), side="right") - 1
            columns = {
                "episode": pa.array(episode),
                "timestep": pa.array(np.arange(first, stop) - store.starts[episode]),
                "observation": _lists(piece.states),
                "action": pa.array(piece.actions) if store.discrete else _lists(piece.actions),
                "reward": pa.array(piece.rewards),
                "terminal": pa.array(piece.ends == TERMINAL),
            }
            if piece.policies is not None:
                columns["policy"] = pa.array(piece.policies)
            told = {"choices": str(store.action_size)} if store.discrete else None
            table = pa.table(columns, metadata=told)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
            first = stop
    finally:
        if writer is not None:
            writer.close()


def _lists(array: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])


def _write_minari(store: Store, name: str) -> str:
    """A Minari dataset on this machine, through the ``minari`` package, a group of episodes after the other."""
    try:
        import minari  # optional extra: minari
    except ModuleNotFoundError as error:
        raise UserError(f"{MINARI}{name} needs the package minari: pip install '.[minari]'") from error
    if not re.fullmatch(NAMED, name):
        raise UserError(f"{MINARI}{name}: a Minari dataset is called like user/hopper-medium-v0")
    if name in minari.list_local_datasets():
        raise UserError(f"{MINARI}{name} is there already; choose another name, or 'minari delete {name}'")
    dataset: Any = None
    try:
        for buffers in _buffers(store):
            if dataset is None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # Minari's, on an environment for evaluation that is not given
                    dataset = minari.create_dataset_from_buffers(name, buffers, **_described(store))
            else:
                dataset.update_dataset_from_buffer(buffers)
    except BaseException as error:
        shutil.rmtree(minari.storage.get_dataset_path(name), ignore_errors=True)
        if isinstance(error, ValueError | AssertionError):
            raise UserError(f"{MINARI}{name}: {' '.join(str(error).split())}") from error
        raise
    return f"{MINARI}{name}" + ("" if store.policies is None else ", without policies, for which Minari has no place")


def _described(store: Store) -> dict[str, Any]:
    low, high = (0, 255) if store.image else (-np.inf, np.inf)
    env_id = store.about.get("env_id")
    told: dict[str, Any] = {"env": env_id} if env_id in gymnasium.registry else {}
    return told | {
        "observation_space": Box(low, high, store.states.shape[1:], store.states.dtype.type),
        "action_space": Discrete(store.action_size) if store.discrete else Box(-1.0, 1.0, store.actions.shape[1:]),
        "algorithm_name": "unknown",
        "description": "Written by scaling; the observation after an episode's last action is the one before it.",
        "author": "unknown",
        "author_email": "unknown",
        "code_permalink": "unknown",
    }


def _buffers(store: Store) -> Iterator[list[Any]]:
    from minari.data_collector import EpisodeBuffer  # optional extra: minari

    number = 0
    for piece in pieces_of(store):
        last = np.flatnonzero(piece.ends) + 1
        buffers = []
        for first, stop in zip([0, *last[:-1].tolist()], last.tolist(), strict=True):
            states, over = piece.states[first:stop], np.arange(first, stop) == stop - 1
            buffers.append(
                EpisodeBuffer(
                    id=number,
                    observations=np.concatenate([states, states[-1:]]),
                    actions=piece.actions[first:stop],
                    rewards=piece.rewards[first:stop].astype(np.float64),
                    terminations=over & (piece.ends[stop - 1] == TERMINAL),
                    truncations=over & (piece.ends[stop - 1] == TIMEOUT),
                    infos={},
                )
            )
            number += 1
        yield buffers
