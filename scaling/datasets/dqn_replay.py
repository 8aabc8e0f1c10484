"""Episodes from the DQN Replay Dataset (Agarwal et al. 2020): pictures of Atari games in the order they were seen.

``data.path`` is a folder of ``$store$_{observation,action,reward,terminal}_ckpt.N.gz``, each gzip of a ``.npy`` file
with one row per step; all numbers N found there are read. Rewards are clipped in the log, hence so are returns-to-go.

Left out, and counted in the manifest: the black rows that the log puts before every episode; the last row of a file,
which is stale; the rows before the first black one, whose episode began in another file; those after the last
terminal, whose episode did not end. Pictures are streamed, so a file never lies in memory as a whole.
"""

import gzip
import re
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scaling.errors import UserError
from scaling.layers.conv_encoder import SIDE
from scaling.spec import DataSpec
from scaling.store import Episodes, Store, build_once, cache_folder, file_identity

FIELDS = ("path",)
PARTS = ("observation", "action", "reward", "terminal")
PADDING = 3
"""Black rows before every episode: the other pictures of its first stack of four."""
CHUNK = 4096
"""Pictures read at once."""


@dataclass(frozen=True, eq=False)
class _Log:
    """One checkpoint of the log, without its pictures."""

    observation: Path
    action: np.ndarray
    reward: np.ndarray
    terminal: np.ndarray


def open(spec: DataSpec, folder: Path) -> Store:
    """The dataset of a sweep whose file lies in ``folder``.

    Raises:
        UserError: there is no such folder, a file is missing or damaged, or no episode is whole.

    """
    place = folder / Path(spec.path).expanduser()
    numbers = _numbers(place)
    identity = "|".join(file_identity(_file(place, part, number)) for number in numbers for part in PARTS)
    return build_once(f"dqn_replay|{identity}", lambda: read(place))


def read(place: Path) -> Episodes:
    """All whole episodes of the folder."""
    logs = [_log(place, number) for number in _numbers(place)]
    kept = [_whole_episodes(log) for log in logs]
    starts, rows = [0], [np.flatnonzero(inside) for inside, _ in kept]
    for _, lengths in kept:
        starts += (starts[-1] + np.cumsum(lengths)).tolist()
    if len(starts) < 3:
        raise UserError(f"{place}: {len(starts) - 1} whole episode(s); at least 2 are needed, one to hold out")
    actions = np.concatenate([log.action[row] for log, row in zip(logs, rows, strict=True)]).astype(np.int64)
    if actions.min() < 0:
        raise UserError(f"{place}: actions reach {actions.min()}; they must be numbers of choices, from 0 on")
    total = sum(len(log.terminal) for log in logs)
    return Episodes(
        states=_pictures(logs, rows),
        actions=actions,
        rewards=np.concatenate([log.reward[row] for log, row in zip(logs, rows, strict=True)]).astype(np.float32),
        starts=np.array(starts, np.int64),
        terminal=np.ones(len(starts) - 1, bool),
        about={"env_id": None, "rows_left_out": total - starts[-1]},
    )


def _numbers(place: Path) -> list[int]:
    found = [re.fullmatch(r"\$store\$_observation_ckpt\.(\d+)\.gz", file.name) for file in place.glob("*")]
    numbers = sorted(int(match.group(1)) for match in found if match)
    if not numbers:
        raise UserError(f"data.path: no $store$_observation_ckpt.N.gz in {place}; give a folder of replay_logs")
    missing = [_file(place, part, n) for n in numbers for part in PARTS if not _file(place, part, n).is_file()]
    if missing:
        raise UserError(f"{missing[0]} is missing; every checkpoint needs {', '.join(PARTS)}")
    return numbers


def _file(place: Path, part: str, number: int) -> Path:
    return place / f"$store$_{part}_ckpt.{number}.gz"


def _log(place: Path, number: int) -> _Log:
    action, reward, terminal = (_array(_file(place, part, number)) for part in PARTS[1:])
    log = _Log(_file(place, "observation", number), action, reward, terminal != 0)
    rows = _header(log.observation)[0]
    for part, array in zip(PARTS[1:], (action, reward, terminal), strict=True):
        if array.shape != (rows,):
            raise UserError(f"{_file(place, part, number)} has shape {array.shape}; expected ({rows},), as observation")
        if array.dtype.kind not in ("fiub" if part == "reward" else "iub") or not np.isfinite(array).all():
            wanted = "finite numbers" if part == "reward" else "whole numbers"
            raise UserError(f"{_file(place, part, number)} holds {array.dtype}, or NaN or infinity; expected {wanted}")
    return log


@contextmanager
def _unpacked(path: Path) -> Iterator[gzip.GzipFile]:
    """The file, with damage told as such; what is read to its end is checked against the sum at the end of the gzip."""
    try:
        with gzip.open(path) as file:
            yield file
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: not a complete gzip of a .npy file ({error}); copy or download it again") from error


def _array(path: Path) -> np.ndarray:
    with _unpacked(path) as file:
        array: np.ndarray = np.load(file, allow_pickle=False)
        file.read()
    return array


def _header(path: Path) -> tuple[int, ...]:
    with _unpacked(path) as file:
        return _read_header(file, path)


def _read_header(file: gzip.GzipFile, path: Path) -> tuple[int, ...]:
    np.lib.format.read_magic(file)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if shape[1:] != (SIDE, SIDE) or dtype != np.uint8 or fortran:
        raise UserError(f"{path} holds {dtype} of shape {shape}; expected uint8 pictures of {SIDE} x {SIDE}")
    return tuple(shape)


def _chunks(path: Path) -> Iterator[np.ndarray]:
    """The pictures of a file, CHUNK at a time."""
    with _unpacked(path) as file:
        left = _read_header(file, path)[0]
        while left:
            count = min(CHUNK, left)
            raw = file.read(count * SIDE * SIDE)
            if len(raw) < count * SIDE * SIDE:
                raise EOFError(f"it ends {left} pictures early")
            yield np.frombuffer(raw, np.uint8).reshape(count, SIDE, SIDE)
            left -= count
        file.read()


def _whole_episodes(log: _Log) -> tuple[np.ndarray, list[int]]:
    """Which rows belong to whole episodes, and the lengths of those."""
    black = np.concatenate([~chunk.any(axis=(1, 2)) for chunk in _chunks(log.observation)])
    padding = black & (log.action == 0) & (log.reward == 0)
    inside = np.zeros(len(black), bool)
    lengths = []
    first = 0
    for last in np.flatnonzero(log.terminal[:-1]).tolist():
        begin = first
        while begin < min(last, first + PADDING) and padding[begin]:
            begin += 1
        if first > 0 or begin == PADDING:  # else it began in another file
            inside[begin : last + 1] = True
            lengths.append(last + 1 - begin)
        first = last + 1
    return inside, lengths


def _pictures(logs: list[_Log], rows: list[np.ndarray]) -> np.ndarray:
    """The chosen pictures of all logs, in a nameless file that is gone with the array."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    shape = (sum(map(len, rows)), SIDE, SIDE)
    with tempfile.TemporaryFile(dir=folder) as file:
        pictures = np.memmap(file, np.uint8, "w+", shape=shape)
    written = 0
    for log, row in zip(logs, rows, strict=True):
        before = 0
        for chunk in _chunks(log.observation):
            chosen = row[(row >= before) & (row < before + len(chunk))] - before
            pictures[written : written + len(chosen)] = chunk[chosen]
            written += len(chosen)
            before += len(chunk)
    return pictures
