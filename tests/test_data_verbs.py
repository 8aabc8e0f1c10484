"""Datasets at the command line: looked at, checked, written in other formats that others read."""

import json
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from scaling.cli import main
from scaling.datasets import d4rl
from scaling.recognise import open_path

from conftest import build, make_columns, write_hdf5


def scaling(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["data", *words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path


def test_a_dataset_is_described_and_drawn(here, hdf5):
    code, said = scaling("inspect", "small.hdf5")
    assert code == 0
    occupied = 119 / 4096  # as many cells as transitions: they are few, and far from each other
    told = dict(line.strip().split("  ", 1) for line in said.splitlines() if "  " in line.strip())
    told = {name: value.strip() for name, value in told.items()}
    assert told["recognised as"] == "d4rl"
    assert told["transitions"] == "119"
    assert told["episodes"] == "10"
    assert told["states"] == "4 components"
    assert told["lengths"].startswith("3 / 7.25 / 10 / 13.5 / 30")
    assert (told["ended by the environment"], told["cut by a limit"]) == ("5", "5")
    assert told["cells of state and action visited"] == f"{occupied:.1%} of 4,096, along 3 random lines"
    with Image.open(here / "results" / "small.hdf5.inspect.png") as picture:
        assert picture.width > 1000
        assert len(picture.convert("L").getcolors(maxcolors=256) or []) > 50


def test_policies_of_a_mixture_are_counted_and_coloured(here, columns):
    columns["policies"] = np.repeat([0, 1], [33, 86]).astype(np.int32)
    write_hdf5(here / "two.hdf5", columns)
    code, said = scaling("inspect", "two.hdf5", "--figure", "two.png")
    assert code == 0
    assert "episodes per policy" in said
    assert "4, 6" in said
    assert (here / "two.png").exists()


@pytest.mark.parametrize("target", ["store", "other.hdf5", "logs.parquet", "minari:test/small-v0"])
def test_what_is_written_reads_back_equal_to_the_last_bit(here, hdf5, target):
    code, said = scaling("convert", "small.hdf5", target)
    assert code == 0
    assert said.strip() == f"119 transitions, 10 episodes -> {target}"
    written = target.removeprefix("minari:")
    store = open_path(written, here)
    assert store.digest == build(hdf5, d4rl.read).digest
    np.testing.assert_array_equal(store.rtg, build(hdf5, d4rl.read).rtg)
    code, said = scaling("verify", written)
    assert code == 0
    assert "119 transitions, 10 episodes, all finite" in said
    assert scaling("convert", "small.hdf5", target)[0] == 2
    assert sorted(p.name for p in here.glob(".*")) == []


def test_a_file_without_timeouts_is_cut_where_the_user_says(here, columns):
    del columns["timeouts"]
    columns["terminals"][:] = False
    write_hdf5(here / "old.hdf5", columns)
    code, said = scaling("verify", "old.hdf5")
    assert code == 2
    assert "1000 for Gym MuJoCo" in said
    assert "119 transitions, 7 episodes" in scaling("verify", "old.hdf5", "--step-limit", "17")[1]
    assert scaling("convert", "old.hdf5", "new", "--step-limit", "17")[0] == 0
    assert open_path("new", here).lengths.tolist() == [17] * 7


def test_choices_survive_every_format(here, columns):
    columns["actions"] = (columns["actions"][:, 0] > 0).astype(np.int64)
    write_hdf5(here / "choices.hdf5", columns)
    digests = {open_path("choices.hdf5", here).digest}
    for target in ("a.hdf5", "a.parquet", "a", "minari:a-v0"):
        assert scaling("convert", "choices.hdf5", target)[0] == 0
        digests.add(open_path(target.removeprefix("minari:"), here).digest)
    assert len(digests) == 1


def test_policies_survive_the_formats_that_have_a_place_for_them(here, columns):
    columns["policies"] = np.repeat([0, 1], [33, 86]).astype(np.int32)
    write_hdf5(here / "two.hdf5", columns)
    for target in ("a.hdf5", "a.parquet", "a"):
        assert scaling("convert", "two.hdf5", target)[0] == 0
        assert open_path(target, here).policies.tolist() == [0] * 4 + [1] * 6


def test_others_read_what_is_written(here, hdf5, columns):
    """By hand: h5py, pyarrow, minari."""
    import minari

    for target in ("a.hdf5", "a.parquet", "minari:a-v0"):
        assert scaling("convert", "small.hdf5", target)[0] == 0
    with h5py.File("a.hdf5") as file:
        for key, values in columns.items():
            np.testing.assert_array_equal(file[key][()], values)
            assert file[key].dtype == values.dtype
    table = pq.read_table("a.parquet")
    assert table["episode"].to_pylist() == np.repeat(np.arange(10), [5, 9, 12, 7, 30, 3, 14, 8, 20, 11]).tolist()
    assert table["timestep"].to_pylist()[:6] == [0, 1, 2, 3, 4, 0]
    np.testing.assert_array_equal(np.array(table["observation"].to_pylist(), np.float32), columns["observations"])
    episodes = list(minari.load_dataset("a-v0").iterate_episodes())
    assert len(episodes) == 10
    np.testing.assert_array_equal(np.concatenate([e.actions for e in episodes]), columns["actions"])
    assert [len(e.observations) - len(e.actions) for e in episodes] == [1] * 10
    assert [bool(e.terminations[-1]) for e in episodes] == [True, False] * 5
    assert [bool(e.truncations[-1]) for e in episodes] == [False, True] * 5


def test_a_store_whose_arrays_were_changed_is_found_out(here, hdf5):
    scaling("convert", "small.hdf5", "store")
    raw = bytearray((here / "store" / "rewards.npy").read_bytes())
    raw[-2] ^= 0xFF
    (here / "store" / "rewards.npy").write_bytes(bytes(raw))
    code, said = scaling("verify", "store")
    assert code == 2
    assert "the arrays do not match the digest in the manifest; returns-to-go are not the sums of the rewards" in said


def test_a_cache_that_holds_something_else_is_found_out(here, hdf5):
    store = open_path("small.hdf5", here)
    manifest = store.folder / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "digest": "0" * 64}))
    code, said = scaling("verify", "small.hdf5")
    assert code == 2
    assert "the store in the cache holds something else than the file; remove the data cache" in said
    assert not list(store.folder.parent.parent.glob(".fresh-*"))


def test_a_next_observation_that_does_not_come_next_is_found_out(here, columns):
    following = np.roll(columns["observations"], -1, axis=0)
    write_hdf5(here / "good.hdf5", {**columns, "next_observations": following})
    assert scaling("verify", "good.hdf5")[0] == 0
    following[7] += 1.0
    write_hdf5(here / "bad.hdf5", {**columns, "next_observations": following})
    code, said = scaling("verify", "bad.hdf5")
    assert code == 2
    assert "next_observations in row 7 is not the observation of row 8, of the same episode" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("inspect", "nothing.hdf5"), "no such file or folder: "),
        (("inspect", "notes.txt"), "not recognised as any of arrow, d4rl, dqn_replay, minari, store, trajectories"),
        (("inspect", "user/logs-v3"), "no Minari dataset 'user/logs-v3' on this machine"),
        (("inspect", "embedded:hoper"), "there is no embedded dataset 'hoper'"),
        (("convert", "small.hdf5", "small.hdf5"), "small.hdf5 is there already; choose another name"),
        (("convert", "small.hdf5", "x.csv"), "x.csv: cannot write .csv; use .hdf5, .h5, .parquet, minari:NAME-v0"),
        (("convert", "small.hdf5", "minari:x"), "minari:x: a Minari dataset is called like user/hopper-medium-v0"),
        (("verify", "."), "not recognised as any of"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(here, hdf5, words, said):
    (here / "notes.txt").write_text("no data")
    code, output = scaling(*words)
    assert code == 2
    assert output.startswith("error: ")
    assert said in output
    assert len(output.splitlines()) == 1


def test_an_export_that_fails_leaves_nothing(here, monkeypatch):
    write_hdf5(here / "x.hdf5", make_columns([4, 6, 3]))
    monkeypatch.setattr(pq.ParquetWriter, "write_table", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left")))
    code, said = scaling("convert", "x.hdf5", "y.parquet")
    assert code == 2
    assert "No space left" in said
    assert sorted(p.name for p in here.iterdir() if p.suffix != ".lock") == ["x.hdf5"]


def test_choices_that_nobody_took_survive_every_format(here, columns):
    columns["actions"] = (columns["actions"][:, 0] > 0).astype(np.int64)
    write_hdf5(here / "choices.hdf5", columns)
    with h5py.File(here / "choices.hdf5", "a") as file:
        file.attrs["choices"] = 5
    digests = {open_path("choices.hdf5", here).digest}
    for target in ("a.hdf5", "a.parquet", "a", "minari:a-v0"):
        assert scaling("convert", "choices.hdf5", target)[0] == 0
        store = open_path(target, here)
        assert store.action_size == 5
        digests.add(store.digest)
    assert len(digests) == 1


def test_an_environment_that_is_not_known_here_does_not_hinder_a_minari_dataset(here, columns):
    columns["policies"] = np.zeros(119, np.int32)
    write_hdf5(here / "own.hdf5", columns)
    with h5py.File(here / "own.hdf5", "a") as file:
        file.attrs["env_id"] = "MyRobot-v0"
    code, said = scaling("convert", "own.hdf5", "minari:own/robot-v0")
    assert code == 0
    assert "minari:own/robot-v0, without policies, for which Minari has no place" in said
    assert scaling("inspect", "minari:own/robot-v0")[0] == 0
