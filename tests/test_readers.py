"""Every reader against files as their own tools write them, and against what may be wrong with such files."""

import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from scaling import plug, source
from scaling.building import content_digest
from scaling.datasets import d4rl, mixture
from scaling.errors import UserError
from scaling.recognise import kind_of, open_path
from scaling.source import Episode, packed
from scaling.spec import DataSpec
from scaling.store import STORE_VERSION, Store

from conftest import build, make_columns, write_hdf5

LENGTHS = [5, 9, 12, 1, 30, 3]


def opened(kind: str, path: Path | str, **fields: Any) -> Store:
    return plug.load("datasets", kind).open(DataSpec(kind=kind, path=str(path), **fields), Path("/"))


def refused(kind: str, path: Path | str, said: str, **fields: Any) -> None:
    with pytest.raises(UserError, match=said) as caught:
        opened(kind, path, **fields)
    assert "\n" not in str(caught.value)


def episodes(lengths: list[int] = LENGTHS, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Trajectories as the Decision Transformer keeps them, the columns of ``make_columns`` cut into episodes."""
    columns = make_columns(lengths, seed)
    cuts = np.cumsum(lengths)[:-1]
    names = ("observations", "actions", "rewards", "terminals")
    parts = [np.split(columns[name], cuts) for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*parts, strict=True)]


def of_columns(tmp_path: Path, lengths: list[int] = LENGTHS) -> Store:
    """The same transitions through the D4RL reader."""
    return build(write_hdf5(tmp_path / "reference.hdf5", make_columns(lengths)), d4rl.read)


def pickled(path: Path, content: Any) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


# D4RL


def test_the_limit_of_the_environment_ends_episodes_where_the_file_has_no_timeouts(tmp_path):
    path = write_hdf5(tmp_path / "old.hdf5", without_timeouts(2100))
    for name in ("Hopper-v5", np.bytes_("Hopper-v5")):
        with h5py.File(path, "a") as file:
            file.attrs["env_id"] = name
        store = opened("d4rl", path)
        assert store.lengths.tolist() == [1000, 1000]
        assert store.about["env_id"] == "Hopper-v5"
        assert store.about["transitions_after_last_end"] == 100


def without_timeouts(rows: int, ends: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    columns = make_columns([rows])
    del columns["timeouts"]
    columns["terminals"] = np.isin(np.arange(rows), ends)
    return columns


def test_an_environment_that_nobody_knows_asks_for_a_limit(tmp_path):
    path = write_hdf5(tmp_path / "old.hdf5", without_timeouts(100))
    with h5py.File(path, "a") as file:
        file.attrs["env_id"] = "Nobodys/Hopper-v5"
    refused("d4rl", path, "give data.step_limit")
    assert opened("d4rl", path, step_limit=40).lengths.tolist() == [40, 40]


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 1000])
def test_a_step_limit_counts_across_pieces(tmp_path, monkeypatch, rows):
    columns = without_timeouts(40, ends=(2, 12, 17, 30))
    monkeypatch.setattr(source, "PIECE_BYTES", rows * (4 * 4 + 2 * 4 + 4 + 1))
    store = opened("d4rl", write_hdf5(tmp_path / f"{rows}.hdf5", columns), step_limit=5)
    assert store.lengths.tolist() == [3, 5, 5, 5, 5, 5, 3, 5]
    assert store.terminal.tolist() == [True, False, True, True, False, False, True, False]


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_ends_are_told_apart_as_by_counting_steps(tmp_path, monkeypatch, limit):
    generator = np.random.default_rng(0)
    terminals, timeouts = generator.random((2, 50)) < 0.1
    ends, since = [], 0
    for row, (terminal, timeout) in enumerate(zip(terminals, timeouts, strict=True)):
        since += 1
        if terminal or timeout or since == limit:
            ends.append((row, bool(terminal)))
            since = 0
    columns = make_columns([50]) | {"terminals": terminals, "timeouts": timeouts}
    monkeypatch.setattr(source, "PIECE_BYTES", 7 * 29)
    store = opened("d4rl", write_hdf5(tmp_path / "x.hdf5", columns), step_limit=limit)
    assert list(zip((store.starts[1:] - 1).tolist(), store.terminal.tolist(), strict=True)) == ends


def test_a_terminal_is_one_even_where_a_timeout_is_true_as_well(tmp_path):
    columns = make_columns([4, 6, 3])
    columns["terminals"][9] = True
    assert columns["timeouts"][9]
    store = opened("d4rl", write_hdf5(tmp_path / "both.hdf5", columns))
    assert store.terminal.tolist() == [True, True, True]


def test_a_policies_array_labels_episodes(tmp_path):
    columns = make_columns([4, 6, 3])
    columns["policies"] = np.repeat([2, 0, 1], [4, 6, 3]).astype(np.uint8)
    assert opened("d4rl", write_hdf5(tmp_path / "x.hdf5", columns)).policies.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("policies", "said"),
    [
        (np.full(13, 0.5), "policies have .* type float64; expected whole numbers"),
        (np.full(13, np.nan), "policies have .* type float64; expected whole numbers"),
        (np.arange(13) - 1, "policies reach -1 in row 0; number them from 0 on"),
        (np.arange(13) * 10**9, "policies reach 1000000000 in row 1; .* below"),
    ],
)
def test_policies_that_are_no_numbers_of_policies_are_refused(tmp_path, policies, said):
    refused("d4rl", write_hdf5(tmp_path / "x.hdf5", make_columns([4, 6, 3]) | {"policies": policies}), said)


def test_whole_actions_in_one_dimension_are_choices(tmp_path):
    columns = make_columns([4, 6, 3]) | {"actions": (np.arange(13) % 5).astype(np.uint8)}
    store = opened("d4rl", write_hdf5(tmp_path / "x.hdf5", columns))
    assert store.discrete
    assert store.action_size == 5
    assert store.actions.tolist() == columns["actions"].tolist()


def test_numbers_beyond_single_precision_are_named_with_their_row(tmp_path):
    columns = make_columns([4, 6, 3])
    columns["observations"] = columns["observations"].astype(np.float64)
    columns["observations"][8, 2] = 1e300
    refused(
        "d4rl", write_hdf5(tmp_path / "x.hdf5", columns), "observations hold .* beyond single precision, first in row 8"
    )


def test_infinities_of_both_signs_are_named_with_their_row(tmp_path):
    columns = make_columns([4, 6, 3])
    columns["rewards"][[5, 6]] = np.inf, -np.inf
    refused("d4rl", write_hdf5(tmp_path / "x.hdf5", columns), "rewards hold .* first in row 5")


def test_rewards_whose_sum_is_beyond_single_precision_are_refused(tmp_path):
    columns = make_columns([4, 6, 3])
    columns["rewards"][4:10] = 1e38
    refused("d4rl", write_hdf5(tmp_path / "x.hdf5", columns), "rewards from row 4 on add up beyond single precision")


def test_choices_without_end_are_refused(tmp_path):
    columns = make_columns([4, 6, 3]) | {"actions": np.full(13, 10**12)}
    refused("d4rl", write_hdf5(tmp_path / "x.hdf5", columns), "actions reach 1000000000000 in row 0; .* below")


def test_a_million_episodes_of_one_or_two_steps_are_read(tmp_path):
    ends = np.cumsum(np.arange(1_000_000) % 2 + 1) - 1
    rows = int(ends[-1]) + 1
    columns = {
        "observations": np.zeros((rows, 1), np.float32),
        "actions": np.zeros((rows, 1), np.float32),
        "rewards": np.ones(rows, np.float32),
        "terminals": np.isin(np.arange(rows), ends[::2]),
    }
    store = opened("d4rl", write_hdf5(tmp_path / "tiny.hdf5", columns), step_limit=2)
    assert store.lengths.tolist() == [1, 2] * 500_000
    assert store.terminal.tolist() == [True, False] * 500_000
    assert store.returns.tolist() == [1.0, 2.0] * 500_000


def test_paths_may_hold_spaces_and_any_letters(tmp_path):
    folder = tmp_path / "my data, 数据 ñ"
    folder.mkdir()
    path = write_hdf5(folder / "hopper é '1'.hdf5", make_columns([4, 6, 3]))
    assert opened("d4rl", path).lengths.tolist() == [4, 6, 3]
    assert open_path(path.name, folder).lengths.tolist() == [4, 6, 3]


@pytest.mark.parametrize("piece", [1, 100, 333, 5000])
def test_pieces_and_chunks_of_any_size_give_the_same_store(tmp_path, monkeypatch, piece):
    columns = make_columns(LENGTHS * 4, tail=3)
    whole = build(write_hdf5(tmp_path / "whole.hdf5", columns), d4rl.read)
    path = tmp_path / "chunked.hdf5"
    with h5py.File(path, "w") as file:
        for rows, (key, values) in zip((7, 13, 11, 240, 1), columns.items(), strict=True):
            file.create_dataset(
                key, data=values, chunks=(rows, *values.shape[1:]), compression="gzip", shuffle=True, fletcher32=True
            )
    monkeypatch.setattr(source, "PIECE_BYTES", piece)
    assert_same(build(path, d4rl.read, tmp_path / "cache"), whole)


def assert_same(store: Store, whole: Store) -> None:
    assert store.digest == whole.digest == content_digest(store.folder, store.about)
    np.testing.assert_array_equal(store.rtg, whole.rtg)


def test_the_home_of_nobody_is_refused(tmp_path):
    for kind in ("d4rl", "minari", "arrow", "trajectories", "store", "dqn_replay"):
        refused(kind, "~nobody-of-this-name/x.hdf5", "there is no such user")


# Trajectories of the Decision Transformer


def test_trajectories_hold_what_the_same_transitions_hold_elsewhere(tmp_path):
    store = opened("trajectories", pickled(tmp_path / "x.pkl", episodes()))
    assert_same(store, of_columns(tmp_path))


def test_a_pickle_of_numpy_1_is_read(tmp_path):
    raw = pickle.dumps(episodes(), protocol=2)
    assert b"numpy._core" in raw
    path = tmp_path / "old.pkl"
    path.write_bytes(raw.replace(b"numpy._core", b"numpy.core"))
    assert_same(opened("trajectories", path), of_columns(tmp_path))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_trajectories_of_every_protocol_order_and_type_are_read(tmp_path, protocol):
    content = episodes()
    content[1] |= {"observations": np.asfortranarray(content[1]["observations"])}
    content[2] |= {"actions": content[2]["actions"].astype(">f8"), "rewards": list(content[2]["rewards"])}
    content[3] |= {key: values.tolist() for key, values in content[3].items()}
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    assert_same(opened("trajectories", path), of_columns(tmp_path))


def test_numbers_that_a_pickle_calls_pointers_are_read_as_numbers(tmp_path):
    """The flags of a type say whether its bytes point to objects; NumPy believes them."""
    raw = pickle.dumps(episodes(), protocol=2)
    plain = b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
    assert plain in raw
    path = tmp_path / "x.pkl"
    path.write_bytes(raw.replace(plain, plain.replace(b"K\x00", b"K\x3f")))
    assert_same(opened("trajectories", path), of_columns(tmp_path))


class Program:
    def __init__(self, call: Callable, *arguments: Any) -> None:
        self.reduced = call, arguments

    def __reduce__(self) -> tuple:
        return self.reduced


@pytest.mark.parametrize("name", ["system", "mkdir"])
def test_a_program_in_a_pickle_is_refused_and_not_run(tmp_path, name):
    made = tmp_path / "made"
    argument = f"mkdir {made}" if name == "system" else str(made)
    content = [*episodes(), {"observations": Program(getattr(os, name), argument)}]
    refused("trajectories", pickled(tmp_path / "x.pkl", content), f"it asks for posix.{name}, which is not an array")
    assert not made.exists()


def spoilt(change: Callable[[dict[str, Any]], object]) -> list[dict[str, Any]]:
    found = episodes()
    change(found[2])
    return found


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"observations": 1}, "holds dict; expected a list of dicts with observations"),
        ([1, 2], "holds list; expected a list of dicts"),
        ([], r"0 finished episode\(s\) in 0 rows"),
        (episodes([4]), r"1 finished episode\(s\) in 4 rows"),
        (spoilt(lambda e: e.pop("rewards")), "episode 2 has no rewards; expected"),
        (spoilt(lambda e: e.update({k: v[:0] for k, v in e.items()})), "episode 2 has no steps; remove it"),
        (spoilt(lambda e: e.update(actions=e["actions"][:-1])), "episode 2 has 12 states and 11 actions"),
        (spoilt(lambda e: e.update(rewards=e["rewards"][:-1])), r"rewards of shape \(11,\) and terminals of \(12,\)"),
        (spoilt(lambda e: e.update(observations=e["observations"][:, :3])), "differ in the shape .*3.*4"),
        (spoilt(lambda e: e.update(observations=[[1.0], [1.0, 2.0]])), "episode 2 has observations of unequal length"),
        (spoilt(lambda e: e["terminals"].__setitem__(4, True)), "in episode 2, terminals is true at step 4 of 12"),
        (spoilt(lambda e: e.update(rewards=np.float32(1), terminals=True)), r"episode 2 has rewards of shape \(\)"),
        (spoilt(lambda e: e.update({k: np.ones((12, 2)) for k in ("rewards", "terminals")})), r"shape \(12, 2\)"),
        (spoilt(lambda e: e.update(terminals=np.array(["False"] * 12))), "<U5; expected one each per step, true or"),
        (
            spoilt(lambda e: e.update(observations=np.array([None] * 12))),
            "array of object, which is not one of numbers",
        ),
        (spoilt(lambda e: e["rewards"].__setitem__(4, np.nan)), "rewards hold NaN.*first in row 18"),
    ],
)
def test_trajectories_that_cannot_be_trained_on_are_refused(tmp_path, content, said):
    refused("trajectories", pickled(tmp_path / "x.pkl", content), said)


def test_trajectories_in_pieces_of_any_size_give_the_same_store(tmp_path, monkeypatch):
    path = pickled(tmp_path / "x.pkl", episodes())
    monkeypatch.setattr(source, "PIECE_BYTES", 300)
    assert_same(opened("trajectories", path), of_columns(tmp_path))


def test_a_row_is_counted_from_the_first_piece_on(monkeypatch):
    found = [Episode(np.zeros((5, 1)), np.full((5, 1), value), np.zeros(5), terminal=True) for value in (0.0, 0.0, 2.0)]
    monkeypatch.setattr(source, "PIECE_BYTES", 1)
    with pytest.raises(UserError, match="first in row 10"):
        list(packed(found, "x"))


# Arrow


def table(lengths: list[int] = LENGTHS, **changes: Any) -> pa.Table:
    columns = make_columns(lengths)
    rows = {
        "episode": np.repeat(np.arange(len(lengths)) * 3, lengths),
        "observation": list(columns["observations"]),
        "action": list(columns["actions"]),
        "reward": columns["rewards"],
        "terminal": columns["terminals"],
    }
    return pa.table({name: pa.array(values) for name, values in (rows | changes).items() if values is not None})


def as_parquet(path: Path, content: pa.Table, rows: int = 10) -> Path:
    pq.write_table(content, path, row_group_size=rows)
    return path


def as_feather(path: Path, content: pa.Table, rows: int = 10) -> Path:
    feather.write_feather(content, path, chunksize=rows)
    return path


def as_ipc(path: Path, content: pa.Table, rows: int = 10) -> Path:
    with pa.ipc.new_file(path, content.schema) as writer:
        writer.write_table(content, rows)
    return path


def as_folder(path: Path, content: pa.Table, rows: int = 10) -> Path:
    path.mkdir()
    for number, first in enumerate(range(0, len(content), rows)):
        as_parquet(path / f"part-{number:03}.parquet", content.slice(first, rows))
    (path / "_SUCCESS").write_text("")
    return path


WRITERS = {"x.parquet": as_parquet, "x.feather": as_feather, "x.arrow": as_ipc, "logs": as_folder}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(("rows", "piece"), [(1000, 1), (1, 1), (1, 1 << 20), (7, 200), (10, 1 << 20), (13, 64)])
def test_logs_hold_what_the_same_transitions_hold_elsewhere_however_they_are_cut(
    tmp_path, monkeypatch, name, rows, piece
):
    whole = of_columns(tmp_path)
    path = WRITERS[name](tmp_path / name, table(), rows)
    monkeypatch.setattr(source, "PIECE_BYTES", piece)
    assert kind_of(name, tmp_path) == "arrow"
    assert_same(opened("arrow", path), whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"episode": [f"run {n}" for n in np.repeat(np.arange(6), LENGTHS)]},
        {"episode": pa.array([f"run {n}" for n in np.repeat(np.arange(6), LENGTHS)]).dictionary_encode()},
        {"episode": pa.array(np.repeat(np.arange(6), LENGTHS).astype(np.uint8))},
        {"timestep": pa.array(np.concatenate([np.arange(n) for n in LENGTHS]).astype(np.uint8))},
        {"observation": pa.FixedSizeListArray.from_arrays(make_columns(LENGTHS)["observations"].ravel(), 4)},
        {"terminal": make_columns(LENGTHS)["terminals"].astype(np.int8)},
    ],
    ids=["text", "category", "uint8", "timestep", "fixed size", "terminal of 0 and 1"],
)
@pytest.mark.parametrize("piece", [1, 1 << 20])
def test_other_types_of_columns_change_nothing(tmp_path, monkeypatch, changes, piece):
    monkeypatch.setattr(source, "PIECE_BYTES", piece)
    for name in ("x.parquet", "x.feather"):
        path = WRITERS[name](tmp_path / name, table(**changes))
        assert_same(opened("arrow", path), of_columns(tmp_path))


def test_whole_actions_are_choices_and_a_policy_column_labels_episodes(tmp_path):
    actions, policies = np.arange(60) % 3, np.repeat([4, 0, 4, 1, 0, 0], LENGTHS)
    store = opened("arrow", as_parquet(tmp_path / "x.parquet", table(action=actions, policy=policies)))
    assert store.actions.tolist() == actions.tolist()
    assert store.action_size == 3
    assert store.policies.tolist() == [4, 0, 4, 1, 0, 0]


def at(row: int, value: object, values: Any) -> list[Any]:
    changed = list(values)
    changed[row] = value
    return changed


SAID_OF_LOGS = {
    "no column reward; expected": {"reward": None},
    "timestep goes from 9 to 11 after row 23": {
        "timestep": np.concatenate([np.arange(n) + (np.arange(n) > 9) for n in LENGTHS])
    },
    "the rows of episode 0 do not stand together": {"episode": np.repeat([0, 1, 2, 0, 3, 4], LENGTHS)},
    "terminal is true in row 16, and episode 6 goes on": {"terminal": at(16, True, make_columns(LENGTHS)["terminals"])},
    "observation has 4 numbers in row .* and 3 in row 20; all": {"observation": at(20, [1.0] * 3, np.ones((60, 4)))},
    "reward is missing in row 31": {"reward": at(31, None, np.ones(60))},
    "action is missing in row 44": {"action": at(44, None, np.zeros((60, 2)))},
    "observations hold NaN.* first in row 20": {"observation": at(20, [1.0, None, 1.0, 1.0], np.ones((60, 4)))},
    "actions reach -1 in row 7": {"action": at(7, -1, [0] * 60)},
    "actions reach 3, beyond .* row 7": {"action": at(7, [0.0, 3.0], np.zeros((60, 2)))},
    "states have shape .* type object": {"observation": [["a", "b"]] * 60},
    r"states have shape \(.*, 0\)": {"observation": pa.array([[]] * 60, pa.list_(pa.float32()))},
    "rewards have .* type object": {"reward": ["1"] * 60},
    "terminal has .* type object; expected true or false": {"terminal": ["False"] * 60},
    r"terminal has shape \(\d+, 1\)": {"terminal": [[False]] * 60},
    "episode has type double; expected whole numbers or text": {"episode": np.repeat(np.arange(6.0), LENGTHS)},
    "episode has type list": {"episode": [[1]] * 60},
    "timestep has .* type object; expected whole": {"timestep": ["a"] * 60},
    "policies have .* type float64; expected whole numbers": {"policy": np.ones(60)},
    "policies reach -2 in row 0": {"policy": np.full(60, -2)},
    r"1 finished episode\(s\) in 60 rows": {"episode": np.zeros(60, int), "terminal": np.zeros(60, bool)},
}


@pytest.mark.parametrize("said", SAID_OF_LOGS)
@pytest.mark.parametrize("piece", [100, 1 << 20])
def test_logs_that_cannot_be_trained_on_are_refused(tmp_path, monkeypatch, said, piece):
    monkeypatch.setattr(source, "PIECE_BYTES", piece)
    refused("arrow", as_parquet(tmp_path / "x.parquet", table(**SAID_OF_LOGS[said])), said)
    refused("arrow", as_ipc(tmp_path / "x.arrow", table(**SAID_OF_LOGS[said])), said)


def test_files_of_one_folder_must_have_the_same_columns(tmp_path):
    folder = as_folder(tmp_path / "logs", table())
    as_parquet(folder / "part-003.parquet", table(policy=np.zeros(60, int)).slice(30, 10))
    refused("arrow", folder, "part-003.parquet: its columns or their types differ")


def test_a_parquet_file_whose_names_are_damaged_is_refused(tmp_path):
    path = as_parquet(tmp_path / "x.parquet", table())
    content = bytearray(path.read_bytes())
    for place in range(len(content) - 6):
        if content[place : place + 6] == b"reward":
            content[place] = 0x80
    path.write_bytes(content)
    refused("arrow", path, "not a whole .parquet file|column")


def test_what_is_no_parquet_or_arrow_file_is_refused(tmp_path):
    for name in ("x.parquet", "x.arrow", "x.feather"):
        (tmp_path / name).write_bytes(b"PAR1 and then something else PAR1")
        refused("arrow", tmp_path / name, f"{name}: not a whole .* file")
    refused("arrow", tmp_path / "none.parquet", "no such file or folder")


def test_text_that_is_no_text_is_refused(tmp_path):
    offsets = np.arange(61, dtype=np.int32)
    names = pa.StringArray.from_buffers(60, pa.py_buffer(offsets), pa.py_buffer(b"a" * 59 + b"\xff"))
    for write, name in ((as_parquet, "x.parquet"), (as_ipc, "x.arrow")):
        refused("arrow", write(tmp_path / name, table(episode=names)), f"{name}: not a whole .* UTF8")


def test_files_without_rows_among_others_change_nothing(tmp_path):
    folder = as_folder(tmp_path / "logs", table())
    as_parquet(folder / "part-0021.parquet", table().slice(0, 0))
    assert_same(opened("arrow", folder), of_columns(tmp_path))


# Stores


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    store = build(write_hdf5(tmp_path / "x.hdf5", make_columns(LENGTHS)), d4rl.read, tmp_path / "cache")
    return Path(store.states.filename).parent


def test_a_store_is_opened_by_its_folder(tmp_path, converted):
    assert kind_of(str(converted), tmp_path) == "store"
    assert_same(opened("store", converted), of_columns(tmp_path))


def saved(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    return lambda folder: np.save(folder / f"{name}.npy", change(np.load(folder / f"{name}.npy")))


def rewritten(name: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new))


DAMAGE = {
    "not a whole store .*manifest.json": lambda folder: (folder / "manifest.json").unlink(),
    "not a whole store .*Expecting": lambda folder: (folder / "manifest.json").write_text("{"),
    "not a whole store .*digest": rewritten("manifest.json", "digest", "digits"),
    "not a whole store .*wrong is its digest": rewritten("manifest.json", '"digest": "', '"digest": "a'),
    "a store of version 1, this is": rewritten("manifest.json", f'"version": {STORE_VERSION}', '"version": 1'),
    "wrong is its about": rewritten("manifest.json", '"about": {', '"about": [], "then": {'),
    "wrong is its states": saved("states", lambda a: a[:-1]),
    "wrong is its states, actions": lambda f: (saved("states", np.float64)(f), saved("actions", np.float64)(f)),
    "wrong is its rewards": saved("rtg", lambda a: a[1:]),
    "wrong is its starts": saved("starts", lambda a: a[[0, 2, 1, *range(3, len(a))]]),
    "wrong is its starts|terminal": saved("terminal", lambda a: a[1:]),
    "wrong is its policies": lambda folder: np.save(folder / "policies.npy", np.zeros(3, np.int32)),
    "not a whole store .*[mM]map|not a whole store": lambda folder: os.truncate(folder / "states.npy", 300),
    "not a whole store .*No data left": lambda folder: os.truncate(folder / "actions.npy", 0),
}


@pytest.mark.parametrize("said", DAMAGE)
def test_a_damaged_store_is_refused(converted, said):
    DAMAGE[said](converted)
    refused("store", converted, said)


def test_a_missing_store_is_refused(tmp_path):
    refused("store", tmp_path / "none", "no such folder")


# Mixtures


def mixed(tmp_path: Path, *parts: Path) -> Store:
    return mixture.open(DataSpec(kind="mixture", parts=tuple(map(str, parts))), tmp_path)


def test_a_mixture_is_its_parts_one_after_the_other_each_a_policy(tmp_path, monkeypatch):
    columns = [make_columns([4, 6, 3], seed=1), make_columns([2, 8], seed=2)]
    first = write_hdf5(tmp_path / "a.hdf5", columns[0])
    second = pickled(tmp_path / "b.pkl", episodes([2, 8], seed=2))
    monkeypatch.setattr(source, "PIECE_BYTES", 100)
    store = mixed(tmp_path, first, second)
    assert store.policies.tolist() == [0, 0, 0, 1, 1]
    assert store.about["policies"] == [str(first), str(second)]
    joined = {key: np.concatenate([part[key] for part in columns]) for key in columns[0]}
    joined["policies"] = np.repeat([0, 1], [13, 10])
    assert_same(store, opened("d4rl", write_hdf5(tmp_path / "both.hdf5", joined)))


def test_parts_of_different_shapes_are_refused(tmp_path):
    a = write_hdf5(tmp_path / "a.hdf5", make_columns([4, 6]))
    columns = make_columns([4, 6])
    b = write_hdf5(tmp_path / "b.hdf5", columns | {"observations": columns["observations"][:, :3]})
    with pytest.raises(UserError, match=r"b.hdf5 has states \(3,\) and actions \(2,\); .*a.hdf5 has \(4,\) and \(2,\)"):
        mixed(tmp_path, a, b)
    with pytest.raises(UserError, match="at least two"):
        mixed(tmp_path, a)


def named(path: Path, env_id: str) -> Path:
    with h5py.File(path, "a") as file:
        file.attrs["env_id"] = env_id
    return path


def test_an_episode_that_two_parts_hold_is_there_once(tmp_path, columns):
    """As medium-replay is part of full-replay: it would count twice, and what is held out could be trained on."""
    write_hdf5(tmp_path / "whole.hdf5", columns)
    write_hdf5(tmp_path / "part.hdf5", {key: values[:33] for key, values in columns.items()})
    store = mixed(tmp_path, tmp_path / "part.hdf5", tmp_path / "whole.hdf5")
    assert len(store.lengths) == 10
    assert store.policies.tolist() == [0] * 4 + [1] * 6
    assert store.about["episodes_left_out"] == 4
    np.testing.assert_array_equal(store.states, columns["observations"])


def test_a_mixture_names_an_environment_where_its_parts_agree_on_one(tmp_path):
    a = write_hdf5(tmp_path / "a.hdf5", make_columns([4, 6], seed=1))
    b = write_hdf5(tmp_path / "b.hdf5", make_columns([3, 5], seed=2))
    assert mixed(tmp_path, a, b).about["env_id"] is None
    named(a, "Hopper-v5")
    assert mixed(tmp_path, a, b).about["env_id"] is None
    named(b, "Hopper-v5")
    assert mixed(tmp_path, a, b).about["env_id"] == "Hopper-v5"
    named(b, "Hopper-v4")
    assert mixed(tmp_path, a, b).about["env_id"] is None


def test_a_mixture_of_choices_has_as_many_as_the_part_with_most(tmp_path):
    parts = [
        write_hdf5(tmp_path / f"{count}.hdf5", make_columns([4, 6], count) | {"actions": np.arange(10) % count})
        for count in (2, 5, 3)
    ]
    assert mixed(tmp_path, *parts).action_size == 5


# Minari


@pytest.fixture
def minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return pytest.importorskip("minari", reason="the package minari is not installed: pip install minari")


BOX = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)
TORQUES = gymnasium.spaces.Box(-1, 1, (2,), np.float32)


def record(minari: ModuleType, name: str, data_format: str, **changes: Any) -> None:
    """The columns of ``make_columns`` as a dataset of Minari's; ``changes`` are spaces, or functions of an episode."""
    spaces = {"observation_space": BOX, "action_space": TORQUES} | {k: v for k, v in changes.items() if "space" in k}
    buffers = []
    for number, episode in enumerate(episodes()):
        values = {
            "observations": np.concatenate([episode["observations"], np.full((1, 4), 99, np.float32)]),
            "actions": episode["actions"],
            "rewards": episode["rewards"],
            "terminations": episode["terminals"],
            "truncations": ~episode["terminals"] & (np.arange(len(episode["rewards"])) == len(episode["rewards"]) - 1),
        }
        values |= {key: change(values[key]) for key, change in changes.items() if key in values}
        buffers.append(minari.data_collector.EpisodeBuffer(id=number, **values))
    about = dict.fromkeys(("algorithm_name", "author", "author_email", "code_permalink", "description"), "x")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari asks for an environment to evaluate in
        minari.create_dataset_from_buffers(name, buffers, data_format=data_format, **about, **spaces)


FORMATS = pytest.mark.parametrize("data_format", ["hdf5", "arrow"])


@FORMATS
def test_a_minari_dataset_is_read_to_the_last_bit_by_its_name_and_by_its_folder(tmp_path, minari, data_format):
    record(minari, "mujoco/hopper/test-v0", data_format)
    assert kind_of("mujoco/hopper/test-v0", tmp_path) == "minari"
    assert kind_of("minari/mujoco/hopper/test-v0", tmp_path) == "minari"
    for path in ("mujoco/hopper/test-v0", tmp_path / "minari/mujoco/hopper/test-v0"):
        store = opened("minari", path)
        assert_same(store, of_columns(tmp_path))
        assert store.terminal.tolist() == [True, False] * 3


@FORMATS
def test_an_episode_both_terminated_and_truncated_is_terminated(minari, data_format):
    record(minari, "test-v0", data_format, truncations=lambda t: t | (np.arange(len(t)) == len(t) - 1))
    assert opened("minari", "test-v0").terminal.tolist() == [True, False] * 3


@FORMATS
def test_choices_that_begin_elsewhere_are_numbered_from_0_on(minari, data_format):
    space = gymnasium.spaces.Discrete(5, start=3)
    record(minari, "test-v0", data_format, action_space=space, actions=lambda a: np.arange(len(a)) % 4 + 3)
    store = opened("minari", "test-v0")
    assert store.actions.tolist() == [step % 4 for length in LENGTHS for step in range(length)]
    assert store.action_size == 5


@FORMATS
def test_a_choice_that_the_space_does_not_have_is_refused(minari, data_format):
    space = gymnasium.spaces.Discrete(3)
    record(minari, "test-v0", data_format, action_space=space, actions=lambda a: np.arange(len(a)) % 5)
    refused("minari", "test-v0", "actions reach 4; the dataset says that there are 3 choices")


@FORMATS
def test_observations_made_of_several_arrays_are_refused(minari, data_format):
    space = gymnasium.spaces.Dict({"a": BOX, "b": BOX})
    record(minari, "test-v0", data_format, observation_space=space, observations=lambda o: {"a": o, "b": o})
    refused("minari", "test-v0", "made of several arrays.*FlattenObservation")


@FORMATS
def test_several_choices_at_once_are_refused(minari, data_format):
    space = gymnasium.spaces.MultiDiscrete([3, 4])
    record(minari, "test-v0", data_format, action_space=space, actions=lambda a: np.full(a.shape, 2))
    refused("minari", "test-v0", "actions reach 2, beyond")


def test_a_name_that_is_not_there_is_answered_with_those_that_are(tmp_path, minari):
    refused("minari", "mujoco/hopper/none-v0", r"no Minari dataset .*\(known: none\); fetch it with 'minari download")
    record(minari, "mujoco/hopper/test-v0", "arrow")
    (tmp_path / "minari" / "broken-v0" / "data").mkdir(parents=True)
    refused("minari", "mujoco/hopper/none-v0", "known: mujoco/hopper/test-v0")


@FORMATS
def test_a_minari_dataset_of_which_a_part_is_lost_is_refused(tmp_path, minari, data_format):
    record(minari, "test-v0", data_format)
    folder = tmp_path / "minari" / "test-v0"
    lost = next(file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != "metadata.json")
    lost.write_bytes(lost.read_bytes()[:100])
    refused("minari", "test-v0", "not a whole Minari dataset")
    (folder / "data" / "metadata.json").write_text("{}")
    refused("minari", "test-v0", "not a whole Minari dataset")


def test_pieces_of_any_size_give_the_same_store_of_a_minari_dataset(tmp_path, minari, monkeypatch):
    record(minari, "test-v0", "hdf5")
    monkeypatch.setattr(source, "PIECE_BYTES", 1)
    assert_same(opened("minari", "test-v0"), of_columns(tmp_path))


# What is what


def test_a_file_of_no_kind_is_refused_with_the_kinds_there_are(tmp_path):
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(UserError, match="not recognised as any of arrow, d4rl, dqn_replay, minari, store,"):
        kind_of("x.csv", tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        kind_of("none.hdf5", tmp_path)
