"""Reading D4RL files, building the store, and what bad files get."""

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from scaling.building import cache_folder
from scaling.datasets import d4rl
from scaling.errors import UserError
from scaling.spec import DataSpec
from scaling.store import open_store, returns_to_go

from conftest import build, make_columns, write_hdf5


def test_episodes_end_at_terminals_and_timeouts_and_the_unfinished_tail_is_left_out(tmp_path):
    columns = make_columns([4, 6, 3], tail=5)
    store = build(write_hdf5(tmp_path / "x.hdf5", columns), d4rl.read)
    assert store.lengths.tolist() == [4, 6, 3]
    assert store.terminal.tolist() == [True, False, True]
    assert len(store.states) == 13
    assert store.about["transitions_after_last_end"] == 5
    np.testing.assert_array_equal(store.states, columns["observations"][:13])


def test_return_to_go_by_hand():
    rewards, starts = np.array([1.0, 2.0, 3.0, 10.0, -4.0]), np.array([0, 3, 5])
    assert returns_to_go(rewards, starts).tolist() == [6.0, 5.0, 3.0, 6.0, -4.0]


def test_digest_follows_content_and_neither_name_nor_compression(tmp_path, columns):
    plain = build(write_hdf5(tmp_path / "plain.hdf5", columns), d4rl.read)
    packed = build(write_hdf5(tmp_path / "packed other name.hdf5", columns, compression="gzip"), d4rl.read)
    columns["rewards"][3] += 1e-3
    changed = build(write_hdf5(tmp_path / "changed.hdf5", columns), d4rl.read)
    assert plain.digest == packed.digest
    assert plain.digest != changed.digest


def test_a_store_is_built_once_and_again_only_when_the_file_changes(hdf5, columns):
    calls = []

    def read(path: Path):
        calls.append(path)
        return d4rl.read(path)

    first = build(hdf5, read)
    assert build(hdf5, read).digest == first.digest
    assert len(calls) == 1
    columns["rewards"] += 1
    write_hdf5(hdf5, columns)
    assert build(hdf5, read).digest != first.digest
    assert len(calls) == 2


def test_store_arrays_are_maps_of_files_that_cannot_be_written(hdf5):
    store = build(hdf5, d4rl.read)
    assert isinstance(store.states, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        store.states[0, 0] = 1.0


def test_nothing_half_built_remains_when_reading_or_writing_fails(tmp_path, hdf5, monkeypatch):
    def broken(path: Path):
        raise UserError("no")

    with pytest.raises(UserError):
        build(hdf5, broken, cache=tmp_path / "cache")
    monkeypatch.setattr(json, "dumps", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(hdf5, d4rl.read, cache=tmp_path / "cache")
    assert [p for p in (tmp_path / "cache").rglob("*") if p.name != "stores" and p.suffix != ".lock"] == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path, hdf5):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="SCALING_CACHE"):
        build(hdf5, d4rl.read, cache=blocked)


def test_the_embedded_dataset_is_what_its_readme_says(tmp_path):
    store = d4rl.open(DataSpec(), tmp_path)
    assert len(store.terminal) == 351
    assert 4 < store.returns.min() < 6
    assert 3300 < store.returns.max() < 3330
    assert store.about["env_id"] == "Hopper-v5"
    manifests = [json.loads(p.read_text()) for p in (cache_folder() / "stores").glob("*/manifest.json")]
    assert store.digest in {manifest["digest"] for manifest in manifests}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("rewards"), "missing rewards"),
        (lambda c: c.pop("timeouts"), "no 'timeouts'"),
        (lambda c: c["observations"].__setitem__((7, 1), np.nan), "observations hold NaN, .*first in row 7"),
        (lambda c: c["actions"].__setitem__((2, 0), 1.5), r"actions reach 1\.5, beyond .* first in row 2"),
        (lambda c: c.update(rewards=c["rewards"][:-1]), r"rewards has shape \(118,\)"),
        (lambda c: c.update(actions=c["actions"][:, 0]), r"actions have shape \(119,\) and type float32"),
        (lambda c: c.update(terminals=c["terminals"] & False, timeouts=c["timeouts"] & False), "0 finished episode"),
    ],
)
def test_a_file_that_cannot_be_trained_on_is_refused_with_what_is_wrong(tmp_path, columns, change, said):
    change(columns)
    path = write_hdf5(tmp_path / "bad.hdf5", columns)
    with pytest.raises(UserError, match=said) as caught:
        build(path, d4rl.read)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_truncated_file_is_refused(tmp_path, hdf5):
    whole = hdf5.read_bytes()
    hdf5.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a complete HDF5 file"):
        build(hdf5, d4rl.read)


def test_a_group_where_an_array_belongs_is_refused(tmp_path, columns):
    del columns["rewards"]
    path = write_hdf5(tmp_path / "group.hdf5", columns)
    with h5py.File(path, "a") as file:
        file.create_group("rewards")
    with pytest.raises(UserError, match="rewards is not an array of numbers"):
        build(path, d4rl.read)


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "empty.hdf5"
    h5py.File(path, "w").close()
    with pytest.raises(UserError, match="missing observations, actions, rewards, terminals"):
        build(path, d4rl.read)


def test_paths_start_at_the_sweep_and_a_missing_file_is_named(tmp_path, hdf5):
    assert d4rl.locate("small.hdf5", tmp_path) == hdf5
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "other.hdf5"))):
        d4rl.locate("other.hdf5", tmp_path)
    with pytest.raises(UserError, match="embedded:hopper-mini-v5"):
        d4rl.locate("embedded:hoper", tmp_path)


def test_a_store_opens_by_its_folder(hdf5):
    store = build(hdf5, d4rl.read)
    folder = Path(store.states.filename).parent
    np.testing.assert_array_equal(open_store(folder).rtg, store.rtg)


def test_a_file_of_another_kind_is_told_as_such(tmp_path):
    (tmp_path / "logs.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"logs.parquet is no HDF5 file but looks like arrow: set data\.kind: arrow"):
        d4rl.open(DataSpec(path="logs.parquet"), tmp_path)
