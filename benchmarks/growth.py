"""How time and memory of a training step grow with width, depth, context, batch and dataset: log-log slopes."""

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import memory
from benchmarks.document import Cell, Settings, Table
from benchmarks.steps import HOPPER, Point, inputs, network, step
from benchmarks.timing import in_turns
from scaling.allocator import memory_kept
from scaling.building import build_once
from scaling.source import INSIDE, TIMEOUT, Piece, Source, rows_at_once

AXES: dict[str, tuple[int, ...]] = {
    "width": (32, 64, 128, 256),
    "depth": (1, 2, 4, 8),
    "context": (20, 40, 80, 160, 320),
    "batch": (8, 16, 32, 64, 128),
}
TRANSITIONS = (10_000, 100_000, 1_000_000)
QUICK_AXES: dict[str, tuple[int, ...]] = {"width": (8, 16)}
QUICK_TRANSITIONS = (1_000, 2_000)
QUICK_POINT = Point(width=8, depth=1, context=4, batch=2)
TITLES = {"context": "context (timesteps)", "batch": "batch (windows)"}
EPISODE = 500


@memory_kept()
def section(settings: Settings) -> list[Table]:
    """A table for each axis; as in a run, memory is kept between updates."""
    base, axes = (QUICK_POINT, QUICK_AXES) if settings.quick else (Point(), AXES)
    tables = [
        grown(TITLES.get(axis, axis), {value: at(base, axis, value) for value in values}, settings)
        for axis, values in axes.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        sizes = QUICK_TRANSITIONS if settings.quick else TRANSITIONS
        stores = {size: dataclasses.replace(base, store=store(size, Path(folder))) for size in sizes}
        return [*tables, grown("dataset (transitions)", stores, settings)]


def at(base: Point, axis: str, value: int) -> Point:
    """The size with another value on one axis."""
    changed: dict[str, Any] = {axis: value}
    return dataclasses.replace(base, **changed)


def grown(axis: str, points: Mapping[int, Point], settings: Settings) -> Table:
    """Steps of these sizes in turns, and the memory of each in a process of its own."""
    calls = {str(value): step(network(point.spec()), inputs(point)) for value, point in points.items()}
    took = in_turns(calls, settings.rounds)
    rows: list[dict[str, Cell]] = [
        {
            axis: value,
            "ms": 1e3 * took[str(value)],
            "peak MiB": memory.peak(point, settings.threads) / 2**20,
        }
        for value, point in points.items()
    ]
    base = next(iter(points.values()))
    held = {"width": base.width, "depth": base.depth, "context": base.context, "batch": base.batch}
    said = ", ".join(f"{name} {value}" for name, value in held.items() if name != axis.partition(" ")[0])
    return Table(
        title=f"Growth with {axis}: {said}",
        rows=rows,
        facts={
            f"slope of {name}": slope(rows, axis, column) for name, column in (("time", "ms"), ("memory", "peak MiB"))
        },
    )


def slope(rows: Sequence[Mapping[str, Cell]], of: str, column: str) -> float:
    """Of log column against log of the axis, by least squares."""
    x, y = (np.log([float(row[name] or 0) for row in rows]) for name in (of, column))
    return float(np.polyfit(x, y, 1)[0])


def store(transitions: int, folder: Path) -> str:
    """The folder of a store of random transitions of Hopper's shape."""
    built = build_once(lambda: f"random {transitions}", lambda: Source("random", _pieces(transitions)), folder)
    return str(built.folder)


def _pieces(transitions: int) -> Iterator[Piece]:
    generator = np.random.default_rng(0)
    step = rows_at_once(4 * (HOPPER.state + HOPPER.action), EPISODE)
    for first in range(0, transitions, step):
        count = min(step, transitions - first)
        yield Piece(
            states=generator.standard_normal((count, HOPPER.state), np.float32),
            actions=generator.uniform(-1, 1, (count, HOPPER.action)).astype(np.float32),
            rewards=generator.random(count, np.float32),
            ends=np.where(np.arange(1, count + 1) % EPISODE == 0, TIMEOUT, INSIDE).astype(np.uint8),
        )
