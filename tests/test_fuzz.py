"""Damaged and odd files of every kind: a reader gives a sane store or one line that says what is wrong."""

import gzip
import os
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra import numpy as arrays

from scaling import plug
from scaling.datasets import d4rl
from scaling.errors import UserError
from scaling.spec import DataSpec
from scaling.store import Store

from conftest import build, make_columns, write_hdf5

EXAMPLES = int(os.environ.get("SCALING_FUZZ", "40"))
"""Damaged files of each kind."""

FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="SCALING_FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
LENGTHS = [5, 9, 12]


def as_hdf5(folder: Path) -> None:
    columns = make_columns(LENGTHS)
    columns["policies"] = np.repeat([0, 1, 0], LENGTHS)
    with h5py.File(folder / "x.hdf5", "w") as file:
        file.attrs["env_id"] = "Hopper-v5"
        for number, (key, values) in enumerate(columns.items()):
            packing = {"chunks": (7, *values.shape[1:]), "compression": "gzip"} if number % 2 else {}
            file.create_dataset(key, data=values, **packing)


def as_table() -> pa.Table:
    columns = make_columns(LENGTHS)
    return pa.table(
        {
            "episode": [f"run {n}" for n in np.repeat([0, 1, 2], LENGTHS)],
            "observation": list(columns["observations"]),
            "action": list(columns["actions"]),
            "reward": columns["rewards"],
            "terminal": columns["terminals"],
            "policy": np.zeros(26, int),
        }
    )


def as_ipc(folder: Path) -> None:
    with pa.ipc.new_file(folder / "x.arrow", as_table().schema) as writer:
        writer.write_table(as_table(), 10)


def as_pickle(folder: Path) -> None:
    columns = make_columns(LENGTHS)
    parts = [np.split(columns[key], np.cumsum(LENGTHS)[:-1]) for key in ("observations", "actions", "rewards")]
    ends = np.split(columns["terminals"], np.cumsum(LENGTHS)[:-1])
    keys = ("observations", "actions", "rewards", "terminals")
    content = [dict(zip(keys, values, strict=True)) for values in zip(*parts, ends, strict=True)]
    (folder / "x.pkl").write_bytes(pickle.dumps(content))


def as_logs(folder: Path) -> None:
    rows = np.array([0, 0, 0, 1, 2, 3, 0, 0, 0, 4, 5, 0, 0, 0, 6, 7, 8])
    logs = {
        "observation": np.broadcast_to(rows.astype(np.uint8)[:, None, None], (len(rows), 84, 84)),
        "action": rows.astype(np.int32) % 4,
        "reward": (rows % 2).astype(np.float32),
        "terminal": np.isin(rows, [3, 5, 8]).astype(np.uint8),
    }
    for part, values in logs.items():
        with gzip.open(folder / f"$store$_{part}_ckpt.0.gz", "wb") as file:
            np.save(file, values)


def as_store(folder: Path) -> None:
    as_hdf5(folder)
    store = build(folder / "x.hdf5", d4rl.read, folder / "cache")
    shutil.move(Path(store.states.filename).parent, folder / "store")
    shutil.rmtree(folder / "cache")
    (folder / "x.hdf5").unlink()


def as_minari(folder: Path, data_format: str) -> None:
    minari = pytest.importorskip("minari", reason="the package minari is not installed: pip install minari")
    columns, buffers = make_columns(LENGTHS), []
    for number, (start, length) in enumerate(zip(np.cumsum([0, *LENGTHS]), LENGTHS, strict=False)):
        rows = {key: values[start : start + length] for key, values in columns.items()}
        seen = np.concatenate([rows.pop("observations"), np.zeros((1, 4), np.float32)])
        values = {"terminations": rows.pop("terminals"), "truncations": rows.pop("timeouts")}
        buffers.append(minari.data_collector.EpisodeBuffer(id=number, observations=seen, **values, **rows))
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # Minari asks who made it
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        spaces = {
            "observation_space": gymnasium.spaces.Box(-9, 9, (4,)),
            "action_space": gymnasium.spaces.Box(-1, 1, (2,)),
        }
        minari.create_dataset_from_buffers("x-v0", buffers, data_format=data_format, **spaces)


KINDS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "d4rl": ("d4rl", "x.hdf5", as_hdf5),
    "parquet": (
        "arrow",
        "x.parquet",
        lambda folder: pq.write_table(as_table(), folder / "x.parquet", row_group_size=9),
    ),
    "feather": ("arrow", "x.feather", lambda folder: feather.write_feather(as_table(), folder / "x.feather")),
    "ipc": ("arrow", "x.arrow", as_ipc),
    "trajectories": ("trajectories", "x.pkl", as_pickle),
    "dqn_replay": ("dqn_replay", ".", as_logs),
    "store": ("store", "store", as_store),
    "minari hdf5": ("minari", "x-v0", lambda folder: as_minari(folder, "hdf5")),
    "minari arrow": ("minari", "x-v0", lambda folder: as_minari(folder, "arrow")),
}


@pytest.fixture(params=KINDS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    """A reader, and a sane dataset for it."""
    kind, path, write = KINDS[request.param]
    folder = tmp_path_factory.mktemp("whole")
    write(folder)
    return kind, path, folder


def read_or_refused(kind: str, path: str, folder: Path) -> Store | None:
    """What the reader gives; a cache of its own shows whether anything half-built remains."""
    cache = folder / ".cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALING_CACHE", str(cache))
        try:
            store = plug.load("datasets", kind).open(DataSpec(kind=kind, path=path), folder)
        except UserError as error:
            store, said = None, str(error)
    if store is not None:
        assert_sane(store)
        return store
    assert "\n" not in said
    assert [file for file in cache.rglob("*") if file.name != "stores" and file.suffix != ".lock"] == []
    return None


def assert_sane(store: Store) -> None:
    rows = len(store.rewards)
    assert len(store.states) == len(store.actions) == len(store.rtg) == rows
    assert (store.starts[0], store.starts[-1]) == (0, rows)
    assert (store.lengths > 0).all()
    assert len(store.terminal) == len(store.lengths) > 1
    assert store.policies is None or (len(store.policies) == len(store.terminal) and (store.policies >= 0).all())
    assert store.space.state > 0
    assert store.action_size > 0


def test_what_is_damaged_here_is_sane_before(whole):
    kind, path, folder = whole
    store = read_or_refused(kind, path, folder)
    assert store is not None
    assert len(store.terminal) == 3 or kind == "dqn_replay"


@FUZZ
@given(data=st.data())
def test_a_damaged_file_gives_a_sane_store_or_one_line(whole, data):
    kind, path, sane = whole
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(shutil.copytree(sane, Path(temporary) / "copy"))
        file = data.draw(st.sampled_from(sorted(file for file in folder.rglob("*") if file.is_file())))
        raw = bytearray(file.read_bytes())
        if data.draw(st.booleans(), "cut"):
            del raw[data.draw(st.integers(0, len(raw)), "at") :]
        for _ in range(data.draw(st.integers(0, 8), "bytes")):
            if raw:
                raw[data.draw(st.integers(0, len(raw) - 1), "place")] = data.draw(st.integers(0, 255), "value")
        file.write_bytes(bytes(raw))
        read_or_refused(kind, path, folder)


NUMBERS = st.sampled_from(["f2", "f4", "f8", ">f4", "i1", "u1", "i4", "u8", "bool", "S3", "U2", "c8"])
EXTREME = [0, 1, -1, 2, 255, 1e30, 1e300, np.inf, -np.inf, np.nan, 2.0**63]


def some_array(rows: int) -> st.SearchStrategy[np.ndarray]:
    """Of ``rows`` rows, mostly, with a few dimensions, of any type, with extreme values."""
    lengths = st.one_of(st.just(rows), st.integers(0, rows))
    shapes = st.tuples(lengths, st.lists(st.integers(0, 3), max_size=3)).map(lambda parts: (parts[0], *parts[1]))
    values = st.tuples(NUMBERS, shapes, st.lists(st.sampled_from(EXTREME), min_size=1, max_size=6))
    return values.map(lambda parts: as_type(np.resize(np.array(parts[2]), parts[1]), parts[0]))


def as_type(values: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return values.astype(dtype)


def some_columns(names: tuple[str, ...], rows: int) -> st.SearchStrategy[dict[str, np.ndarray]]:
    """A few columns replaced by arrays of any kind."""
    return st.dictionaries(st.sampled_from(names), some_array(rows), max_size=2)


D4RL_KEYS = (*d4rl.REQUIRED, *d4rl.OPTIONAL)


@FUZZ
@given(
    changes=some_columns(D4RL_KEYS, sum(LENGTHS)),
    env_id=st.one_of(st.none(), st.text(), arrays.from_dtype(np.dtype("f4"))),
)
def test_arrays_of_any_kind_give_a_sane_store_or_one_line(changes, env_id):
    columns: dict[str, Any] = make_columns(LENGTHS) | changes
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "x.hdf5"
        write_hdf5(path, {key: v if v.dtype.kind != "U" else v.astype("S3") for key, v in columns.items()})
        if env_id is not None and not (isinstance(env_id, str) and ("\0" in env_id or not env_id.isprintable())):
            with h5py.File(path, "a") as file:
                file.attrs["env_id"] = env_id
        read_or_refused("d4rl", "x.hdf5", Path(temporary))


@FUZZ
@given(changes=some_columns(("observations", "actions", "rewards", "terminals"), 9), odd=st.integers(0, 3))
def test_trajectories_of_any_kind_give_a_sane_store_or_one_line(changes, odd):
    columns = make_columns([9])
    del columns["timeouts"]
    content: list[Any] = [dict(columns) for _ in range(3)]
    content[1] |= changes
    if odd == 1:
        content[2] |= {key: values.tolist() for key, values in changes.items()}
    if odd == 2:
        content[0] |= {key: values[:, None] for key, values in columns.items()}
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "x.pkl").write_bytes(pickle.dumps(content))
        read_or_refused("trajectories", "x.pkl", Path(temporary))


COLUMN = st.one_of(*(st.lists(kind, min_size=26, max_size=26) for kind in (
    st.one_of(st.none(), st.booleans()), st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1), st.floats(),
    st.text(max_size=2), st.binary(max_size=2), st.lists(st.floats(-1, 1), max_size=2),
    st.lists(st.floats(-1, 1), min_size=2, max_size=2), st.lists(st.lists(st.integers(), max_size=1), max_size=2),
    st.dates(), st.datetimes(), st.decimals(allow_nan=False, places=2, min_value=-9, max_value=9),
    st.fixed_dictionaries({"a": st.integers(0, 3)}),
)))  # fmt: skip


@FUZZ
@given(
    changes=st.dictionaries(st.sampled_from([*as_table().column_names, "timestep"]), COLUMN, min_size=1, max_size=2),
    suffix=st.sampled_from(["parquet", "arrow"]),
)
def test_logs_of_any_kind_give_a_sane_store_or_one_line(changes, suffix):
    content = as_table()
    for name, values in changes.items():
        try:
            array = pa.array(values)
        except (pa.ArrowException, OverflowError):
            return
        content = content.drop_columns([name]) if name in content.column_names else content
        content = content.append_column(name, array)
    with tempfile.TemporaryDirectory() as temporary:
        if suffix == "parquet":
            pq.write_table(content, Path(temporary) / "x.parquet", row_group_size=9)
        else:
            with pa.ipc.new_file(Path(temporary) / "x.arrow", content.schema) as writer:
                writer.write_table(content, 9)
        read_or_refused("arrow", f"x.{suffix}", Path(temporary))
