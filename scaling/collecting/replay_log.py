"""Files of a DQN Replay log, put together from blocks of whole episodes.

A block holds its pictures as gzip of their bytes. Since a gzip file may be a chain of gzips, a checkpoint of the log
is the gzip of a ``.npy`` header followed by those of its blocks: pictures are compressed once and never unpacked.
"""

import gzip
import io
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scaling.collecting.games import Game
from scaling.collecting.scripted import player
from scaling.layers.conv_encoder import SIDE

PADDING = 3
"""Black rows before every episode: the other pictures of its first stack of four."""
LEVEL = 4
"""Compression of pictures; higher levels take longer than the emulator."""
PICTURES = "pictures.gz"
COLUMNS = {"action": np.int32, "reward": np.float32, "terminal": np.uint8}
BLACK = np.zeros((SIDE, SIDE), np.uint8)


@dataclass(frozen=True)
class Block:
    """Whole episodes of a player, at least ``steps`` steps of them; a folder."""

    path: Path
    env_id: str
    policy: str
    seeds: tuple[int, ...]
    steps: int

    def make(self) -> None:
        """Play and write the folder, whole or not at all; one picture at a time lies in memory."""
        temporary = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
        rows: list[tuple[int, float, int]] = []
        with gzip.GzipFile(temporary / PICTURES, "wb", LEVEL, mtime=0) as pictures:
            for picture, action, reward, terminal in self._play():
                pictures.write(picture.tobytes())
                rows.append((action, reward, terminal))
        for (name, kind), values in zip(COLUMNS.items(), zip(*rows, strict=True), strict=True):
            np.save(temporary / f"{name}.npy", np.array(values, kind))
        if self.path.exists():  # a worker of a killed driver may have lingered
            shutil.rmtree(self.path)
        temporary.rename(self.path)

    def _play(self) -> Iterator[tuple[np.ndarray, int, float, int]]:
        """Rows of the log: picture, action taken on it, clipped reward of that action, whether the episode ended."""
        game, choose = Game(self.env_id), player(self.policy, self.env_id)
        generator = np.random.default_rng(self.seeds)
        steps = 0
        while steps < self.steps:
            picture, over = game.reset(int(generator.integers(2**31))), False
            yield from [(BLACK, 0, 0.0, 0)] * PADDING
            while not over:
                action = choose(game, generator)
                after, gained, over = game.step(action)
                yield picture, action, float(np.clip(gained, -1.0, 1.0)), int(over)
                picture, steps = after, steps + 1
        game.close()

    def column(self, name: str) -> np.ndarray:
        """(row,) of a finished block."""
        array: np.ndarray = np.load(self.path / f"{name}.npy", allow_pickle=False)
        return array


def grouped(blocks: list[Block], rows: int) -> list[list[Block]]:
    """Blocks in order, as many per file as fit into ``rows`` with a stale one; a longer block has its own file."""
    files: list[list[Block]] = []
    room = 0
    for block in blocks:
        length = len(block.column("action"))
        if length > room:
            files.append([])
            room = rows - 1
        files[-1].append(block)
        room -= length
    return files


def write_checkpoint(folder: Path, number: int, blocks: list[Block]) -> None:
    """Write the four files of one checkpoint; its last row is stale, as in Dopamine's logs."""
    for name, kind in COLUMNS.items():
        values = np.concatenate([*(block.column(name) for block in blocks), np.zeros(1, kind)])
        packed = io.BytesIO()
        np.save(packed, values)
        _replace(folder, name, number, [gzip.compress(packed.getvalue(), mtime=0)])
    header = io.BytesIO()
    shape = (len(values), SIDE, SIDE)
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    ends = [gzip.compress(part, mtime=0) for part in (header.getvalue(), BLACK.tobytes())]
    _replace(folder, "observation", number, [ends[0], *(block.path / PICTURES for block in blocks), ends[1]])


def _replace(folder: Path, name: str, number: int, parts: list[bytes | Path]) -> None:
    path = folder / f"$store$_{name}_ckpt.{number}.gz"
    temporary = folder / f".{path.name}.partial"
    with temporary.open("wb") as out:
        for part in parts:
            if isinstance(part, bytes):
                out.write(part)
            else:
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, out)
    temporary.replace(path)
