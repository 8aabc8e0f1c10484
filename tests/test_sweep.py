"""Through the door: the real command line on a real local Ray."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from scaling import episodes, results

from conftest import make_columns, write_hdf5

SCALING = str(Path(sys.executable).parent / "scaling")
SMOKE = str(Path(__file__).parents[1] / "sweeps" / "smoke.yaml")


def scaling(*arguments: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([SCALING, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Path:
    """A folder in which the smoke sweep has been run."""
    folder = tmp_path_factory.mktemp("smoke")
    done = scaling("run", SMOKE, "--cpus", 2, cwd=folder)
    assert done.stdout.startswith("smoke: 4 of 4 runs done, best loss")
    assert done.stdout.count("\n") == 1
    return folder


def test_every_run_of_a_sweep_ends_as_a_row_and_nothing_else_is_left(smoke):
    files = sorted(str(p.relative_to(smoke)) for p in smoke.rglob("*") if p.is_file())
    assert len(files) == 8
    assert {Path(name).name for name in files} == {"row.parquet", "episodes.parquet"}
    assert all(name.startswith("runs/") for name in files)


def test_every_rolled_out_episode_is_a_row_beside_the_table(smoke):
    said = scaling("collect", SMOKE, "--out", "table.parquet", cwd=smoke).stdout
    assert "8 episodes -> table.episodes.parquet" in said
    played = episodes.read_frame(smoke / "table.episodes.parquet")
    frame = results.read_frame(smoke / "table.parquet").set_index("run_id")
    assert set(played["run_id"]) == set(frame.index)
    for name, rows in played.groupby("run_id"):
        assert rows["return"].tolist() == frame.loc[name, "returns"].tolist()
        assert rows["score"].mean() == pytest.approx(frame.loc[name, "score"])
        assert rows["episode"].tolist() == [0, 1]


def test_a_sweep_runs_its_trials_side_by_side_with_one_thread_each(smoke):
    scaling("collect", SMOKE, "--out", "table.parquet", cwd=smoke)
    frame = results.read_frame(smoke / "table.parquet")
    assert set(frame["threads"]) == {1}
    assert set(frame["status"]) == {"done"}
    assert set(frame["kernel"]) == {"numba"}
    assert frame["returns"].str.len().eq(2).all()
    assert (frame["score"] == 100 * (frame["return_mean"] + 20.272305) / (3234.3 + 20.272305)).all()


def test_a_second_run_starts_nothing(smoke):
    before = {p: p.stat().st_mtime_ns for p in smoke.rglob("row.parquet")}
    begin = time.monotonic()
    scaling("run", SMOKE, cwd=smoke)
    assert time.monotonic() - begin < 60
    assert {p: p.stat().st_mtime_ns for p in smoke.rglob("row.parquet")} == before


def test_the_rest_of_the_way_reads_what_lies_on_disk(smoke):
    assert "4 of 4 runs -> results/smoke.parquet" in scaling("collect", SMOKE, cwd=smoke).stdout
    assert "smoke: 4 done, 0 running, 0 failed, 0 waiting, of 4" in scaling("status", SMOKE, cwd=smoke).stdout
    planned = scaling("plan", SMOKE, cwd=smoke).stdout
    assert planned.count("done") == 4
    assert "4 runs, C = " in planned
    fitted = scaling("fit", "results/smoke.parquet", "--law", "constant", "--bootstrap", 20, "--json", "-", cwd=smoke)
    told = json.loads(fitted.stdout)
    assert told["law"] == "constant"
    assert told["rows_used"] == 4
    assert set(told["theta"]) == set(told["intervals"]["percentile"]) == {"E"}


def test_four_rows_are_too_few_for_five_parameters(smoke):
    scaling("collect", SMOKE, "--out", "few.parquet", cwd=smoke)
    done = scaling("answer", "few.parquet", cwd=smoke, code=2)
    assert done.stderr.startswith("error: no law can be compared on this table (")
    assert "law additive has 5 parameters, the table 4 usable rows" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def own_data(tmp_path) -> Path:
    lengths = np.random.default_rng(0).integers(8, 30, 40).tolist()
    write_hdf5(tmp_path / "mine.hdf5", make_columns(lengths))
    return tmp_path


def sweep_file(folder: Path, axes: str, amount: int = 6) -> Path:
    path = folder / "own.yaml"
    path.write_text(
        f"""
name: own
base:
  model: {{width: 16, depth: 1, context: 4, subsequence: 2}}
  data: {{path: mine.hdf5}}
  train: {{amount: {amount}, batch: 4, evaluations: 2}}
axes: {axes}
"""
    )
    return path


def test_a_run_that_diverges_is_a_failed_row_and_the_others_go_on(own_data):
    sweep = sweep_file(own_data, "{train.learning_rate: [1.0e-3, 1.0e+30, 2.0e-3]}", amount=40)
    done = scaling("run", sweep, "--cpus", 1, cwd=own_data, code=1)
    assert "own: 2 of 3 runs done" in done.stdout
    assert "diverged: training or held-out loss is not finite after" in done.stdout
    assert "1 failed" in scaling("status", sweep, cwd=own_data).stdout
    scaling("collect", sweep, "--out", "own.parquet", cwd=own_data)
    frame = results.read_frame(own_data / "own.parquet")
    failed = frame[frame["status"] == "failed"].iloc[0]
    assert failed["error"].startswith("diverged")
    assert pd.isna(failed["loss"])
    fitted = scaling("fit", "own.parquet", "--law", "constant", "--bootstrap", 10, "--json", "-", cwd=own_data)
    told = json.loads(fitted.stdout)
    assert told["rows_used"] == 2
    assert told["rows_refused"] == {"failed run": 1}
    assert "pooled:train.learning_rate" in told["flags"]


def test_interrupted_work_goes_on_where_it_stopped(own_data):
    sweep = sweep_file(own_data, "{seed: [0, 1, 2, 3, 4, 5]}", amount=400)
    driver = subprocess.Popen(
        [SCALING, "run", str(sweep), "--cpus", "1"], cwd=own_data, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list(own_data.glob("runs/*/row.parquet")) and time.monotonic() < deadline:
        time.sleep(0.05)
    driver.send_signal(signal.SIGINT)
    said, _ = driver.communicate(timeout=120)
    finished = {p: p.stat().st_mtime_ns for p in own_data.glob("runs/*/row.parquet")}
    assert driver.returncode == 75, said
    assert 0 < len(finished) < 6
    assert "the same command goes on" in said
    assert "6 of 6 runs done" in scaling("run", sweep, "--cpus", 2, cwd=own_data).stdout
    after = {p: p.stat().st_mtime_ns for p in own_data.glob("runs/*/row.parquet")}
    assert len(after) == 6
    assert finished.items() <= after.items()


def test_a_killed_worker_is_replaced_and_its_run_done_again(own_data):
    sweep = sweep_file(own_data, "{seed: [0, 1]}", amount=800)
    driver = subprocess.Popen(
        [SCALING, "run", str(sweep), "--cpus", "1"], cwd=own_data, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        signs = list(own_data.glob("runs/*/running.json"))
        if signs:
            os.kill(json.loads(signs[0].read_text())["pid"], signal.SIGKILL)
            break
        time.sleep(0.05)
    said, _ = driver.communicate(timeout=200)
    assert driver.returncode == 0, said
    assert "2 of 2 runs done" in said
    assert list(own_data.glob("runs/*/running.json")) == []


@pytest.mark.parametrize("verb", ["plan", "run"])
@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda f: (f / "mine.hdf5").unlink(), "no such file"),
        (lambda f: (f / "mine.hdf5").write_bytes(b"\x89HDF truncated"), "not a complete HDF5 file"),
        (lambda f: (f / "own.yaml").write_text("base: {modle: {}}"), "own.yaml:1: unknown key in base: 'modle'"),
        (lambda f: sweep_file(f, "{data.fraction: [0.0001]}"), "holds no episode"),
        (lambda f: sweep_file(f, "{model.context: [500]}"), "model.context 500 is longer than every episode"),
        (lambda f: sweep_file(f, "{model.kind: [mambdm]}"), "did you mean 'mambadm'"),
        (lambda f: sweep_file(f, "{data.kind: [d4r1]}"), "did you mean 'd4rl'"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2_and_nothing_is_written(own_data, verb, break_it, said):
    sweep_file(own_data, "{seed: [0]}")
    break_it(own_data)
    before = sorted(own_data.iterdir())
    done = scaling(verb, "own.yaml", cwd=own_data, code=2)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert sorted(own_data.iterdir()) == before


def test_nan_observations_name_the_row(own_data):
    with h5py.File(own_data / "mine.hdf5", "a") as file:
        file["observations"][3, 0] = np.nan
    done = scaling("run", sweep_file(own_data, "{seed: [0]}"), cwd=own_data, code=2)
    assert (
        "mine.hdf5: observations hold NaN, infinity, or a number beyond single precision, first in row 3" in done.stderr
    )
    assert not (own_data / "runs").exists()


def test_nothing_to_collect_says_how_to_start(own_data):
    done = scaling("collect", sweep_file(own_data, "{seed: [0]}"), cwd=own_data, code=2)
    assert "start them with 'scaling run" in done.stderr
    assert not (own_data / "results").exists()


def test_more_gpus_than_there_are_is_refused(own_data):
    sweep = sweep_file(own_data, "{seed: [0]}")
    done = scaling("run", sweep, "--gpus-per-run", 99, cwd=own_data, code=2)
    assert "--gpus-per-run 99 exceeds the 0 GPU(s) of this machine" in done.stderr


def test_a_dataset_that_changes_under_a_sweep_fails_its_runs_with_the_reason(own_data):
    sweep = sweep_file(own_data, "{seed: [0, 1, 2, 3]}", amount=400)
    driver = subprocess.Popen(
        [SCALING, "run", str(sweep), "--cpus", "1"], cwd=own_data, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list(own_data.glob("runs/*/running.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    write_hdf5(own_data / "mine.hdf5", make_columns([20] * 30, seed=9))
    said, _ = driver.communicate(timeout=200)
    assert driver.returncode == 1, said
    assert "mine.hdf5 has changed since the sweep began" in said


def test_a_place_that_cannot_be_written_is_named(smoke):
    (smoke / "file").write_text("")
    done = scaling("collect", SMOKE, "--out", "file/table.parquet", cwd=smoke, code=2)
    assert done.stderr.startswith("error: cannot read or write")


def test_a_root_that_is_a_file_is_refused(own_data):
    (own_data / "root").write_text("")
    done = scaling("run", sweep_file(own_data, "{seed: [0]}"), "--root", "root/runs", cwd=own_data, code=2)
    assert "choose another with --root" in done.stderr


def test_rows_of_different_code_are_not_mixed_unless_asked(own_data):
    sweep = sweep_file(own_data, "{seed: [0, 1]}")
    scaling("run", sweep, cwd=own_data)
    one, _ = sorted(own_data.glob("runs/*/row.parquet"))
    row = {**pq.read_table(one).to_pylist()[0], "git_commit": "0" * 40}
    results.write_row(own_data / "runs", row)
    done = scaling("collect", sweep, cwd=own_data, code=2)
    assert "000000000000" in done.stderr
    assert "--mixed-code" in done.stderr
    assert "2 of 2 runs" in scaling("collect", sweep, "--mixed-code", cwd=own_data).stdout
