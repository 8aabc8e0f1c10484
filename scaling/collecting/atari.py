"""``scaling data collect`` for Atari games: play blocks of episodes, write a DQN Replay log."""

from pathlib import Path
from typing import Any

import numpy as np

from scaling.collecting.place import PARTS, Request
from scaling.collecting.pool import Piece, make_all
from scaling.collecting.replay_log import Block, grouped, write_checkpoint
from scaling.collecting.scripted import player
from scaling.collecting.shown import Shown
from scaling.collecting.worlds import make
from scaling.errors import UserError

BLOCK = 10_000
"""Steps per block: seconds of work, of which a crash costs those under way."""
BLOCKS = 4
"""Blocks per file at least, so that files are nearly full."""
FIRST = 5
"""First number of the seeds of games."""


def check(request: Request) -> None:
    """Refuse a game that cannot be played so.

    Raises:
        UserError: with the game and the policies there are.

    """
    if request.policy == "sac":
        raise UserError(
            f"--policy sac needs continuous actions, and --env {request.env} has choices; use random or track"
        )
    player(request.policy, request.env)
    make(request.env, frameskip=1, obs_type="ram").close()


def collect(folder: Path, request: Request, steps: int, workers: int, shown: Shown) -> dict[str, Any]:
    """Play at least ``steps`` steps in whole episodes and write the log; the end of the manifest."""
    blocks = _blocks(folder, request, steps)
    missing = [block for block in blocks if not block.path.exists()]
    shown.stage("playing", steps, steps - sum(block.steps for block in missing))

    def made(piece: Piece) -> None:
        assert isinstance(piece, Block)
        shown.advance(piece.steps)

    make_all(missing, workers, made)
    files: dict[str, Any] = {}
    for number, group in enumerate(grouped(blocks, request.rows_per_file or 0)):
        write_checkpoint(folder, number, group)
        files[f"$store$_observation_ckpt.{number}.gz"] = _content(group)
    return {"files": files, "returns": "of rewards clipped to [-1, 1]"}


def _blocks(folder: Path, request: Request, steps: int) -> list[Block]:
    place = folder.resolve() / PARTS  # workers may have another current folder
    place.mkdir(exist_ok=True)
    assert request.rows_per_file is not None
    size = min(BLOCK, request.rows_per_file // BLOCKS)
    sizes = [min(size, steps - begin) for begin in range(0, steps, size)]
    return [
        Block(place / f"{number:06d}", request.env, request.policy, (FIRST, request.seed, number), size)
        for number, size in enumerate(sizes)
    ]


def _content(group: list[Block]) -> dict[str, float]:
    episodes = sum(int(np.sum(block.column("terminal"), dtype=np.int64)) for block in group)
    gained = sum(float(np.sum(block.column("reward"), dtype=np.float64)) for block in group)
    rows = sum(len(block.column("action")) for block in group) + 1
    return {"rows": rows, "episodes": episodes, "mean_return": gained / episodes}
