"""Episodes from the DQN Replay Dataset (Agarwal et al. 2020): pictures of Atari games in the order they were seen.

``data.path`` is a folder of ``$store$_{observation,action,reward,terminal}_ckpt.N.gz``, each gzip of a ``.npy`` file
with one row per step; all numbers N found there are read. Rewards are clipped in the log, hence so are returns-to-go.

Left out, and counted in the manifest: the black rows that the log puts before every episode; the last row of a file,
which is stale; the rows before the first black one, whose episode began in another file; those after the last
terminal, whose episode did not end. Pictures are streamed, so a file never lies in memory as a whole.
"""

import gzip
import re
import tokenize
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scaling.building import build_once, file_identity
from scaling.errors import UserError
from scaling.layers.conv_encoder import SIDE
from scaling.source import INSIDE, TERMINAL, Piece, Source, checked, place_of, reward_of
from scaling.spec import DataSpec
from scaling.store import Store

FIELDS = ("path",)
PARTS = ("observation", "action", "reward", "terminal")
PADDING = 3
"""Black rows before every episode: the other pictures of its first stack of four."""
CHUNK = 2048
"""Pictures read at once."""


@dataclass(frozen=True, eq=False)
class _Log:
    """One checkpoint of the log, without its pictures."""

    observation: Path
    action: np.ndarray
    reward: np.ndarray
    terminal: np.ndarray


def recognises(path: Path) -> bool:
    """Whether the folder holds such files."""
    return path.is_dir() and any(path.glob("$store$_observation_ckpt.*.gz"))


def open(spec: DataSpec, folder: Path) -> Store:
    """The dataset of a sweep whose file lies in ``folder``.

    Raises:
        UserError: there is no such folder, a file is missing or damaged, or no episode is whole.

    """
    place = place_of(spec.path, folder)
    return build_once(lambda: "dqn_replay|" + "|".join(map(file_identity, _files(place))), lambda: read(place))


def read(place: Path) -> Source:
    """All whole episodes of the folder; ``about`` counts what is left out, as it is read."""
    about: dict[str, Any] = {"env_id": None, "rows_left_out": 0}
    return Source(str(place), _pieces(place, about), about)


def _files(place: Path) -> list[Path]:
    return [_file(place, part, number) for number in _numbers(place) for part in PARTS]


def _pieces(place: Path, about: dict[str, Any]) -> Iterator[Piece]:
    for number in _numbers(place):
        log = _log(place, number)
        inside, ends = _whole_episodes(log)
        about["rows_left_out"] += int(np.count_nonzero(~inside))
        first = 0
        for pictures in _chunks(log.observation):
            rows = slice(first, first + len(pictures))
            kept = inside[rows]
            piece = Piece(
                pictures[kept],
                log.action[rows][kept].astype(np.int64),
                reward_of(log.reward[rows][kept], str(_file(place, "reward", number))),
                ends[rows][kept],
            )
            yield checked(piece, str(_file(place, "action", number)), first)
            first += len(pictures)


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
    except (OSError, EOFError, ValueError, MemoryError, tokenize.TokenError, zlib.error) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path}: not a complete gzip of a .npy file ({said}); copy or download it again") from error


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


def _whole_episodes(log: _Log) -> tuple[np.ndarray, np.ndarray]:
    """Which rows belong to whole episodes, and what follows each row."""
    black = np.concatenate([~chunk.any(axis=(1, 2)) for chunk in _chunks(log.observation)] or [np.zeros(0, bool)])
    padding = black & (log.action == 0) & (log.reward == 0)
    inside = np.zeros(len(black), bool)
    ends = np.full(len(black), INSIDE, np.uint8)
    first = 0
    for last in np.flatnonzero(log.terminal[:-1]).tolist():
        begin = first
        while begin < min(last, first + PADDING) and padding[begin]:
            begin += 1
        if first > 0 or begin == PADDING:  # else it began in another file
            inside[begin : last + 1] = True
            ends[last] = TERMINAL
        first = last + 1
    return inside, ends
