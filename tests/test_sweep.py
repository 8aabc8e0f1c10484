"""Through the door: the real command line on a real local Ray."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from scaling import episodes, grid, plan, results, sweep as tuning
from scaling.cli import main
from scaling.driver import orders_of
from scaling.resources import Habits
from scaling.root import open_root
from scaling.runs import identify
from scaling.work import Work

from conftest import make_columns, write_hdf5

ONE, NO_RAY = ("--cpus", 1), ("--address", "none")
"""A Ray with room for one run, and none."""

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
    logs = [name for name in files if "tfevents" in name]
    rows = [name for name in files if name.endswith(".parquet")]
    assert len(rows) == 8
    assert {Path(name).name for name in rows} == {"row.parquet", "episodes.parquet"}
    assert {Path(name).parent for name in logs} <= {Path(name).parent for name in rows}
    assert set(files) - set(rows) - set(logs) == {"runs/sweeps/smoke.json"}


def test_where_every_run_has_its_row_no_ray_is_started(smoke, monkeypatch):
    def starting_ray(cpus):
        raise AssertionError("started")

    monkeypatch.setattr("scaling.local_ray.starting_ray", starting_ray)
    root = str(smoke / "runs")
    said = CliRunner().invoke(main, ["run", str(SMOKE), "--root", root])
    assert said.exit_code == 0
    assert said.stdout.startswith("smoke: 4 of 4 runs done")
    with pytest.raises(AssertionError, match="started"):
        CliRunner().invoke(main, ["run", str(SMOKE), "--root", root + "2"], catch_exceptions=False)


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
    assert "smoke: 4 done, 0 running, 0 stale, 0 failed, 0 waiting, of 4" in scaling("status", SMOKE, cwd=smoke).stdout
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


def start(sweep: Path, *arguments: object) -> subprocess.Popen[str]:
    """A driver under way."""
    command = [SCALING, "run", str(sweep), *map(str, arguments)]
    return subprocess.Popen(command, cwd=sweep.parent, stdout=subprocess.PIPE, text=True)


def wait_for(folder: Path, pattern: str) -> Path:
    """The first file that fits, once there is one."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for path in folder.glob(pattern):
            return path
        time.sleep(0.05)
    raise AssertionError(f"no {pattern}")


def wait_for_work(folder: Path) -> Path:
    """The claim of a run that has no row yet."""
    while True:
        claim = wait_for(folder, CLAIM)
        if not (claim.parent / "row.parquet").exists():
            return claim


CLAIM, ROW = "runs/*/claim-*.json", "runs/*/row.parquet"


def test_a_run_that_diverges_is_a_failed_row_and_the_others_go_on(own_data):
    sweep = sweep_file(own_data, "{train.learning_rate: [1.0e-3, 1.0e+30, 2.0e-3]}", amount=40)
    done = scaling("run", sweep, *NO_RAY, cwd=own_data, code=1)
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


@pytest.mark.parametrize(("number", "how"), [(signal.SIGINT, ONE), (signal.SIGTERM, NO_RAY), (signal.SIGUSR1, ONE)])
def test_a_signal_saves_what_runs_and_the_same_command_goes_on_to_the_same_rows(own_data, number, how):
    sweep = sweep_file(own_data, "{train.amount: [1000, 50]}")  # the longer one comes first
    driver = start(sweep, *how)
    wait_for_work(own_data)
    driver.send_signal(number)
    said, _ = driver.communicate(timeout=120)
    assert driver.returncode == 75, said
    assert "the same command goes on" in said
    assert list(own_data.glob(CLAIM)) == []
    assert list(own_data.glob(ROW)) == []
    assert len(list(own_data.glob("runs/*/checkpoint.pt"))) == 1
    assert "2 of 2 runs done" in scaling("run", sweep, *NO_RAY, cwd=own_data).stdout
    assert list(own_data.glob("runs/*/checkpoint.pt")) == []
    broken_off, whole = own_data / "runs", own_data / "whole"
    scaling("run", sweep, "--root", whole, *NO_RAY, cwd=own_data)
    assert repeatable(broken_off) == repeatable(whole)


def repeatable(root: Path) -> dict[str, dict]:
    """What must be equal in two rows of one run."""
    rows = [pq.read_table(path).to_pylist()[0] for path in root.glob("*/row.parquet")]
    return {row["run_id"]: {name: row[name] for name in row if results.BY_NAME[name].repeatable} for row in rows}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker_is_replaced_and_its_run_done_again(own_data, number):
    """SIGTERM gives it time to save the state of its run."""
    sweep = sweep_file(own_data, "{seed: [0, 1]}", amount=2000)
    driver = start(sweep, "--cpus", 1)
    os.kill(json.loads(wait_for_work(own_data).read_text())["pid"], number)
    said, _ = driver.communicate(timeout=200)
    assert driver.returncode == 0, said
    assert "2 of 2 runs done" in said
    assert list(own_data.glob(CLAIM)) == []
    resumes = sorted(pq.read_table(path)["resumes"][0].as_py() for path in own_data.glob(ROW))
    assert resumes == [0, int(number == signal.SIGTERM)]


def test_a_run_is_given_up_only_after_as_many_deaths_as_are_said(own_data):
    """Of a process that died between two trials Tune tells twice, and does not try again."""
    runs, place = identify(grid.read(sweep_file(own_data, "{seed: [0]}"))), open_root(own_data / "runs")
    replaces = dict.fromkeys(runs.specs)
    habits = Habits(threads=1, checkpoint_seconds=300.0, keep_checkpoints=False)
    orders = orders_of(runs, plan.plan(runs), place, replaces, habits)
    work = Work(place, list(orders), replaces, wait=True)
    asking = SimpleNamespace(asked=False, keep_listening=lambda: None)
    watcher = SimpleNamespace(ended=lambda name, loss: None)
    callback = tuning._Callback(tuning._Queue(work, orders, asking, None), watcher, retries=2)
    for step, trial_id in enumerate("abc"):
        names = work.next_pack()
        assert names == list(orders)
        trial = SimpleNamespace(trial_id=trial_id, config={"run_ids": names}, get_pickled_error=lambda: None)
        callback.on_trial_recover(step, [], trial)
        callback.on_trial_error(step, [], trial)
    row = results.read_row(place, *orders)
    assert row["error"] == "the worker process died 3 times; out of memory or killed"
    assert work.is_over()


def test_a_killed_driver_leaves_claims_that_the_next_one_takes_over_at_once(own_data):
    sweep = sweep_file(own_data, "{seed: [0, 1]}", amount=400)
    driver = start(sweep, "--address", "none")
    wait_for_work(own_data)
    driver.kill()
    driver.communicate()
    assert "1 stale" in scaling("status", sweep, cwd=own_data).stdout
    begin = time.monotonic()
    assert "2 of 2 runs done" in scaling("run", sweep, "--address", "none", cwd=own_data).stdout
    assert time.monotonic() - begin < 50  # without waiting for the claim to grow old


def test_two_drivers_share_a_sweep_and_do_no_run_twice(own_data):
    sweep = sweep_file(own_data, "{seed: [0, 1, 2, 3, 4, 5, 6, 7]}", amount=150)
    drivers = [start(sweep, "--address", "none"), start(sweep, "--address", "none")]
    written: dict[Path, set[int]] = {}
    while any(driver.poll() is None for driver in drivers):
        for row in own_data.glob(ROW):
            written.setdefault(row, set()).add(row.stat().st_mtime_ns)
        time.sleep(0.02)
    for driver in drivers:
        assert "8 of 8 runs done" in driver.communicate()[0]
        assert driver.returncode == 0
    assert len(written) == 8
    assert all(len(times) == 1 for times in written.values())


def test_a_driver_that_does_not_wait_leaves_what_others_hold(own_data):
    sweep = sweep_file(own_data, "{seed: [0]}", amount=2000)
    driver = start(sweep, "--address", "none")
    wait_for_work(own_data)
    done = scaling("run", sweep, "--address", "none", "--no-wait", cwd=own_data)
    assert "1 runs are under way elsewhere" in done.stdout
    driver.terminate()
    driver.communicate(timeout=60)
    assert driver.returncode == 75


def test_status_says_who_works_on_what_without_the_dataset(own_data):
    sweep = sweep_file(own_data, "{seed: [0, 1]}", amount=4000)
    driver = start(sweep, *NO_RAY, "--checkpoint-every", 0.2)
    wait_for(own_data, "runs/*/checkpoint.pt")  # it has read its data
    (own_data / "mine.hdf5").rename(own_data / "away.hdf5")
    said = scaling("status", sweep, cwd=own_data).stdout
    (own_data / "away.hdf5").rename(own_data / "mine.hdf5")
    driver.terminate()
    driver.communicate(timeout=60)
    assert "own: 0 done, 1 running, 0 stale, 0 failed, 1 waiting, of 2" in said
    assert "mambadm width 16 depth 1 context 4, fraction 1, draw 0, seed " in said


def test_failed_runs_are_done_again_when_asked_for(own_data):
    sweep = sweep_file(own_data, "{train.learning_rate: [1.0e-3, 1.0e+30]}", amount=40)
    none = ("--address", "none")
    scaling("run", sweep, *none, cwd=own_data, code=1)
    good, bad = sorted(own_data.glob(ROW), key=lambda path: pq.read_table(path)["status"][0].as_py())
    before = {path: path.stat().st_mtime_ns for path in (good, bad)}
    scaling("run", sweep, *none, cwd=own_data, code=1)
    assert {path: path.stat().st_mtime_ns for path in (good, bad)} == before
    scaling("run", sweep, *none, "--only", "failed", cwd=own_data, code=1)
    assert good.stat().st_mtime_ns == before[good]
    assert bad.stat().st_mtime_ns > before[bad]
    done = scaling("retry", sweep, "nosuch", cwd=own_data, code=2)
    assert f"no failed run begins with 'nosuch'; failed are: {bad.parent.name}" in done.stderr
    assert "1 failed runs forgotten" in scaling("retry", sweep, bad.parent.name[:5], cwd=own_data).stdout
    assert not bad.exists()
    assert good.exists()


def test_runs_of_two_processes_give_the_rows_of_one(own_data):
    """Through Ray, with dropout, a batch that does not divide evenly, and a team kept from run to run."""
    sweep = sweep_file(own_data, "{seed: [0, 1], train.batch: [7]}", amount=30)
    scaling("run", sweep, "--workers", 2, "--root", "two", cwd=own_data)
    scaling("run", sweep, "--address", "none", "--root", "one", cwd=own_data)
    one, two = repeatable(own_data / "one"), repeatable(own_data / "two")
    assert len(one) == 2
    for name, row in one.items():
        assert two[name]["processes"] == 2
        assert row["processes"] == 1
        for a, b in zip(row["curve"], two[name]["curve"], strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


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
    done = scaling("run", sweep, "--gpus", 99, cwd=own_data, code=2)
    assert "one run needs 1 process(es) with 1 core(s) and 99 GPU(s) each" in done.stderr
    assert "lower --workers, --threads or --gpus" in done.stderr


def test_a_dataset_that_changes_under_a_sweep_stops_it_with_the_reason(own_data):
    sweep = sweep_file(own_data, "{seed: [0, 1, 2, 3, 4, 5, 6, 7]}", amount=400)
    scaling("plan", sweep, cwd=own_data)  # the kernels are compiled
    driver = start(sweep, "--cpus", 1)
    wait_for(own_data, "runs/sweeps/own.json")
    write_hdf5(own_data / "mine.hdf5", make_columns([20] * 30, seed=9))
    said, _ = driver.communicate(timeout=200)
    assert driver.returncode == 1, said
    assert "stopped early: 3 runs failed alike before any was done: mine.hdf5 has changed since the sweep began" in said
    assert len(list(own_data.glob(ROW))) < 8


def test_a_sweep_that_changes_under_its_driver_is_said(own_data):
    sweep = sweep_file(own_data, "{seed: [0]}", amount=600)
    driver = start(sweep, "--address", "none")
    wait_for_work(own_data)
    sweep_file(own_data, "{seed: [0, 1]}", amount=600)
    said, _ = driver.communicate(timeout=120)
    assert driver.returncode == 75
    assert "own.yaml has changed meanwhile" in said
    assert "2 of 2 runs done" in scaling("run", sweep, "--address", "none", cwd=own_data).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--workers", 2, "--address", "none"), "--workers 2 needs Ray"),
        (("--workers", 2, "--cpus", 1), "one run takes 2 worker(s) x 1 thread(s), and there are 1 core(s) to use"),
        (("--address", "127.0.0.1:1"), "no Ray answers at 127.0.0.1:1: Connection refused"),
        (("--address", "nowhere"), "no Ray answers at nowhere"),
        (("--root", "foo://bar/baz"), "--root foo://bar/baz cannot be used"),
    ],
)
def test_resources_that_cannot_be_had_are_one_line(own_data, arguments, said):
    done = scaling("run", sweep_file(own_data, "{seed: [0]}"), *arguments, cwd=own_data, code=2)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


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
    scaling("run", sweep, *NO_RAY, cwd=own_data)
    one, _ = sorted(own_data.glob("runs/*/row.parquet"))
    row = {**pq.read_table(one).to_pylist()[0], "git_commit": "0" * 40}
    results.write_row(open_root(own_data / "runs"), row)
    done = scaling("collect", sweep, cwd=own_data, code=2)
    assert "000000000000" in done.stderr
    assert "--mixed-code" in done.stderr
    assert "2 of 2 runs" in scaling("collect", sweep, "--mixed-code", cwd=own_data).stdout
