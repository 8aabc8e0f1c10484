"""A sweep amid kills and trouble with its disk leaves the rows of an undisturbed one; in short, on a local Ray."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from benchmarks import chaos, harm, mounts, processes
from benchmarks.harm import Done

RUNS, UPDATES = 8, 150
KILLS = {"trial": 2, "desk": 1, "driver": 1}


@dataclass
class Amid:
    """How a disturbed sweep ended."""

    done: list[Done]
    exits: list[int]
    rows: chaos.Rows
    expected: chaos.Rows
    violations: list[str]
    refusal: str | None


@pytest.fixture(scope="module")
def amid() -> Iterator[Amid]:
    """A sweep with all that may happen to it, on a small disk where one can be mounted."""
    refusal = mounts.refusal()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))  # sockets need short names
    try:
        with chaos.own_processes() as before, chaos.small_disk(folder / "root", wanted=not refusal):
            study = chaos.Study(folder, RUNS, UPDATES, workers=1, say=print)
            expected = study.undisturbed("--address", "none")
            dues = harm.plan(np.random.default_rng(0), RUNS, KILLS, 0 if refusal else 1)
            harming, driver = study.disturbed(dues, None, "--cpus", 2)
            study.judge_processes(lambda pid, _: pid not in before)
            study.judge(expected)
            rows = chaos.read_rows(study.root, study.run_ids)
            print((folder / "driver.log").read_text())
        yield Amid(harming.done, driver.exits, rows, expected, study.violations, refusal)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_runs_whose_processes_were_killed_leave_the_rows_of_an_undisturbed_sweep(amid):
    assert {done.kind for done in amid.done} >= set(KILLS)
    assert -9 in amid.exits
    assert len(amid.rows) == len(amid.expected) == RUNS
    assert amid.violations == []


def test_a_full_and_a_read_only_disk_cost_no_row(amid):
    if amid.refusal:
        pytest.skip(f"NOT TESTED: a full and a read-only disk, since nothing can be mounted here: {amid.refusal}")
    assert {done.kind for done in amid.done} >= set(harm.SPELLS)
    assert amid.violations == []


def test_a_row_that_differs_vanishes_or_is_written_again_is_seen(tmp_path):
    row = {"status": "done", "loss": float("nan"), "curve": [{"update": 1, "loss": 0.5}], "train_seconds": 1.0}
    rows = {"a": {name: row.get(name) for name in chaos.results.SCHEMA.names}}
    again = {"a": {**rows["a"], "train_seconds": 2.0, "loss": float("nan")}}
    assert chaos.differences(rows, again) == []
    again["a"]["curve"] = [{"update": 1, "loss": np.nextafter(0.5, 1.0)}]
    assert ["differs in curve" in wrong for wrong in chaos.differences(rows, again)] == [True]
    assert chaos.differences(rows, again, tolerance=1e-6) == []
    assert chaos.differences(rows, {}) == ["a has no row"]
    watch = chaos.Watch(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "row.parquet").write_text("one")
    assert watch.look() == 1
    (tmp_path / "a" / "row.parquet").write_text("two")
    assert watch.look() == 1
    (tmp_path / "a" / "row.parquet").unlink()
    assert watch.look() == 0
    assert watch.violations == ["the row of a was written again", "the row of a vanished"]


def test_disturbances_are_spread_over_the_rows_and_of_the_kinds_asked_for():
    kills = harm.shared_out(30, harm.KILLS)
    assert sum(kills.values()) == 30
    assert kills["member"] == 0
    assert min(count for kind, count in kills.items() if kind != "member") >= 1
    dues = harm.plan(np.random.default_rng(0), 40, kills, 2)
    assert dues == harm.plan(np.random.default_rng(0), 40, kills, 2)
    assert len(dues) == 34
    rows = [due.rows for due in dues]
    assert rows == sorted(rows)
    assert rows[0] <= 2
    assert rows[-1] >= 36
    assert sum(row >= 20 for row in rows) >= 15


def test_orphans_stay_in_sight_and_are_ended():
    with chaos.own_processes() as before:
        script = "import subprocess; subprocess.Popen(['sleep', '60'])"
        subprocess.run([sys.executable, "-c", script], check=True)
        mine = {pid: title for pid, title in processes.descendants().items() if pid not in before}
        assert list(mine.values()) == ["sleep 60"]
        assert not processes.kill(1)
    assert processes.left_over(lambda pid, _: pid in mine, patience=10.0) == {}
