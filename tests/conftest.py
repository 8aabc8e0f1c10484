"""Small real files and worlds that many tests share."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from scaling import garbage
from scaling.building import build_once, file_identity
from scaling.source import TERMINAL, Piece, Source
from scaling.spec import DataSpec, ModelSpec, RunSpec, TrainSpec, to_dict
from scaling.store import Store


def pytest_collection_finish() -> None:
    """Accelerate collects garbage after each training, and need not go through all that was imported by now."""
    garbage.collect()


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data cache of this session's own."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["SCALING_CACHE"] = str(folder)
    yield folder
    del os.environ["SCALING_CACHE"]


@pytest.fixture(autouse=True, scope="session")
def each_run_alone() -> Iterator[None]:
    """Rows to the last bit, and no trials, unless a test asks for packs."""
    os.environ["SCALING_PACK"] = "1"
    yield
    del os.environ["SCALING_PACK"]


def make_columns(lengths: list[int], seed: int = 0, tail: int = 0) -> dict[str, np.ndarray]:
    """Columns of a D4RL file with episodes of these lengths; every other one ends by a timeout.

    The action is a fixed function of the state plus noise, so that there is something to learn.
    """
    generator = np.random.default_rng(seed)
    rows = sum(lengths) + tail
    state = generator.normal(size=(rows, 4)).astype(np.float32)
    mix = np.random.default_rng(7).normal(size=(4, 2))
    action = np.tanh(state @ mix + 0.1 * generator.normal(size=(rows, 2))).astype(np.float32)
    last = np.cumsum(lengths) - 1
    terminals, timeouts = np.zeros(rows, bool), np.zeros(rows, bool)
    terminals[last[::2]] = True
    timeouts[last[1::2]] = True
    reward = generator.uniform(size=rows).astype(np.float32)
    return {"observations": state, "actions": action, "rewards": reward, "terminals": terminals, "timeouts": timeouts}


def write_hdf5(path: Path, columns: dict[str, np.ndarray], compression: str | None = None) -> Path:
    with h5py.File(path, "w") as file:
        for key, values in columns.items():
            file.create_dataset(key, data=values, compression=compression)
    return path


def build(path: Path, read: Callable[[Path], Source], cache: Path | None = None) -> Store:
    """The store of a file."""
    return build_once(lambda: file_identity(path), lambda: read(path), cache)


@pytest.fixture
def columns() -> dict[str, np.ndarray]:
    return make_columns([5, 9, 12, 7, 30, 3, 14, 8, 20, 11])


@pytest.fixture
def hdf5(tmp_path: Path, columns: dict[str, np.ndarray]) -> Path:
    return write_hdf5(tmp_path / "small.hdf5", columns)


@pytest.fixture
def pictures(tmp_path) -> Store:
    """Episodes of 5, 2 and 9 pictures; the value of every pixel is the number of its transition, plus one."""
    rows = 16
    numbers = np.arange(1, rows + 1, dtype=np.uint8)
    piece = Piece(
        states=np.broadcast_to(numbers[:, None, None], (rows, 84, 84)).copy(),
        actions=np.arange(rows) % 4,
        rewards=np.ones(rows, np.float32),
        ends=np.isin(np.arange(rows), [4, 6, 15]).astype(np.uint8) * TERMINAL,
    )
    return build_once(lambda: "pictures", lambda: Source("pictures", [piece]), tmp_path)


def loss_world(noise: float, seed: int = 0, seeds: int = 2, law: Callable | None = None) -> pd.DataFrame:
    """A table as collect would make it, from a planted law with multiplicative noise."""
    generator = np.random.default_rng(seed)
    law = law or (lambda N, D: 0.15 + 2.0 * N**-0.4 + 3.0 * D**-0.45)
    rows = [
        {"N": n, "D": d, "width": width, "depth": 1, "fraction": fraction, "seed": s, "status": "done"}
        for width, n in ((16, 9e3), (24, 2e4), (32, 3.5e4), (48, 8e4), (64, 1.4e5))
        for fraction, d in ((0.0625, 3e3), (0.125, 6e3), (0.25, 1.2e4), (0.5, 2.4e4), (1.0, 4.8e4))
        for s in range(seeds)
    ]
    frame = pd.DataFrame(rows)
    frame["loss_best"] = law(frame["N"], frame["D"]) * np.exp(noise * generator.standard_normal(len(frame)))
    return frame


def with_specs(frame: pd.DataFrame, rates: list[float]) -> pd.DataFrame:
    """The frame with the specs that could have made it, the learning rates in turn."""
    specs = [
        RunSpec(
            model=ModelSpec(width=int(row.width), depth=1),
            data=DataSpec(fraction=row.fraction, draw=int(row.seed), path=f"copy{row.seed}.hdf5"),
            train=TrainSpec(learning_rate=rates[index % len(rates)]),
            seed=int(row.seed),
        )
        for index, row in enumerate(frame.itertuples())
    ]
    return frame.assign(spec=[json.dumps(to_dict(spec)) for spec in specs], dataset="digest")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where data.hdf5 has forty short episodes."""
    lengths = np.random.default_rng(1).integers(4, 30, 40).tolist()
    write_hdf5(tmp_path / "data.hdf5", make_columns(lengths))
    return tmp_path
