"""The D4RL files of a collection: rollouts of random, medium and expert policy, and the training's own transitions.

The names are those of Fu et al. (2020). The expert is the checkpoint with the largest mean return.

CHOICE: the medium policy is, of the checkpoints before the first that reaches ENOUGH of the expert's return, the one
closest to a MEDIUM of it. D4RL trains "to approximately 1/3 the performance of the expert"; learning is not monotone,
so a later checkpoint with such a return may be an expert that fell. Where random actions return less than zero,
returns are counted from theirs.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scaling.collecting import d4rl_file, records
from scaling.collecting.actors import Actor
from scaling.collecting.d4rl_file import Content
from scaling.collecting.place import PARTS, Request
from scaling.collecting.pool import Piece, make_all
from scaling.collecting.rollouts import Shard
from scaling.collecting.shown import Shown
from scaling.collecting.training import Course, log_path

MEDIUM, ENOUGH = 1 / 3, 0.8
SHARD = 20_000
"""Steps per shard of rollouts: seconds of work, of which a crash costs those under way."""
NUMBERS = {"random": 2, "medium": 3, "expert": 4}
"""First number of the seeds of each set of rollouts."""


@dataclass(frozen=True, eq=False)
class Rollouts:
    """One set that is to be made by playing."""

    name: str
    actor: Actor
    made_by: str
    """Names the policy: ``uniform``, or ``checkpoint N``."""
    rows: int


def expert(course: Course) -> int:
    """Steps of the best checkpoint."""
    return int(max(course.checkpoints, key=lambda point: point["mean_return"])["steps"])


def medium(course: Course) -> int:
    """Steps of the medium checkpoint; the first one where all are nearly as good as the best."""
    steps = [int(point["steps"]) for point in course.checkpoints]
    gained = np.array([point["mean_return"] for point in course.checkpoints]) - min(0.0, course.random_return[0])
    first = int(np.argmax(gained >= ENOUGH * gained.max()))
    return steps[int(np.argmin(np.abs(gained[: max(1, first)] - MEDIUM * gained.max())))]


def learned(course: Course) -> bool:
    """Whether the best checkpoint is clearly better than random actions."""
    mean, deviation = course.random_return
    return max(point["mean_return"] for point in course.checkpoints) > mean + 2 * deviation


def write_replay(folder: Path, name: str, request: Request, kind: np.dtype, stop: int) -> Content:
    """Write the finished episodes among the first ``stop`` transitions of the training, unless they are there."""
    path = folder / f"{name}.hdf5"
    origin = _origin(request, made_by="training", rows=stop)
    found = d4rl_file.content(path, origin)
    if found is None:
        episodes = records.whole_episodes(records.read(log_path(folder), kind, 0, stop))
        found = d4rl_file.write(path, request.env, origin, kind, episodes)
    return found


def write_rollouts(
    folder: Path, wanted: Rollouts, request: Request, kind: np.dtype, workers: int, shown: Shown
) -> Content:
    """Play what is missing of the set and write it, unless it is there; the same for any number of workers."""
    path = folder / f"{wanted.name}.hdf5"
    origin = _origin(request, made_by=wanted.made_by, rows=wanted.rows)
    found = d4rl_file.content(path, origin)
    if found is None:
        shards = _shards(folder, wanted, request, origin)
        _play(shards, wanted, workers, shown)
        episodes = records.first_rows(_loaded(shards), wanted.rows)
        found = d4rl_file.write(path, request.env, origin, kind, episodes)
        shutil.rmtree(shards[0].path.parent)
    return found


def _origin(request: Request, made_by: str, rows: int) -> str:
    return json.dumps({"env": request.env, "seed": request.seed, "made_by": made_by, "rows": rows})


def _shards(folder: Path, wanted: Rollouts, request: Request, origin: str) -> list[Shard]:
    place = folder.resolve() / PARTS / f"{wanted.name}-{hashlib.sha256(origin.encode()).hexdigest()[:12]}"
    place.mkdir(parents=True, exist_ok=True)
    first = NUMBERS[wanted.name], request.seed
    sizes = [min(SHARD, wanted.rows - begin) for begin in range(0, wanted.rows, SHARD)]
    return [
        Shard(place / f"{number:06d}.npy", request.env, wanted.actor, (*first, number), size)
        for number, size in enumerate(sizes)
    ]


def _play(shards: list[Shard], wanted: Rollouts, workers: int, shown: Shown) -> None:
    missing = [shard for shard in shards if not shard.path.exists()]
    shown.stage(f"rollouts of {wanted.name}", wanted.rows, wanted.rows - sum(shard.rows for shard in missing))

    def made(piece: Piece) -> None:
        assert isinstance(piece, Shard)
        shown.advance(piece.rows)

    make_all(missing, workers, made)


def _loaded(shards: Iterable[Shard]) -> Iterator[np.ndarray]:
    for shard in shards:
        yield np.load(shard.path, allow_pickle=False)
