"""Packs through the command line, on a real local Ray and without."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from company import assert_rows_equal

from scaling import grid, results, train
from scaling.root import open_root
from scaling.runs import identify

from conftest import make_columns, write_hdf5

SCALING = str(Path(sys.executable).parent / "scaling")
AXES = "{model.width: [16, 24], seed: [0, 1, 2]}"


@pytest.fixture
def sweep(tmp_path) -> Path:
    lengths = np.random.default_rng(1).integers(4, 30, 40).tolist()
    write_hdf5(tmp_path / "mine.hdf5", make_columns(lengths))
    path = tmp_path / "own.yaml"
    path.write_text(
        f"""
name: own
base:
  model: {{width: 16, depth: 1, context: 4, subsequence: 2}}
  data: {{path: mine.hdf5}}
  train: {{amount: 20, batch: 4, evaluations: 2}}
axes: {AXES}
"""
    )
    return path


def scaling(*arguments: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "SCALING_PACK"}
    command = [SCALING, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def rows(folder: Path) -> list[dict]:
    root = open_root(folder / "runs")
    return [results.read_row(root, path.parent.name) for path in (folder / "runs").glob("*/row.parquet")]


@pytest.mark.parametrize("where", [("--cpus", 1), ("--address", "none")])
def test_a_sweep_in_packs_has_every_row_and_nothing_else_is_left(sweep, where):
    folder = sweep.parent
    said = scaling("run", sweep, "--pack", 3, *where, cwd=folder).stdout
    assert "own: 6 of 6 runs done" in said
    assert [row["packed"] for row in rows(folder)] == [3] * 6
    kept = {path.name.partition(".tfevents")[0] for path in folder.glob("runs/*/*")}
    assert kept - {"events.out"} == {"row.parquet", "own.json"}
    if where[0] == "--cpus":
        assert len({path.parent for path in folder.glob("runs/*/events.out.tfevents*")}) == 6


def test_without_the_option_packs_are_found_by_trying(sweep):
    text = sweep.read_text().replace(AXES, "{seed: [0, 1, 2, 3, 4, 5]}").replace("amount: 20", "amount: 420")
    sweep.write_text(text)  # enough updates for a trial to pay
    said = scaling("run", sweep, "--address", "none", cwd=sweep.parent).stdout
    assert "own: 6 of 6 runs done" in said
    assert {row["packed"] for row in rows(sweep.parent)} <= {1, 2, 4, 6}
    assert "6 to do" not in scaling("plan", sweep, cwd=sweep.parent).stdout


@pytest.mark.parametrize(
    ("options", "axes", "said"),
    [
        (("--pack", 0), AXES, "0 is not in the range x>=1"),
        (("--pack", 2, "--log", "wandb"), AXES, "--pack 2 cannot go with --log wandb"),
        (
            ("--pack", 2),
            "{model.width: [16, 24, 32]}",
            "--pack 2: no two of the 3 runs of the sweep have the shape in common",
        ),
    ],
)
def test_a_pack_that_cannot_be_is_refused_with_the_reason(sweep, options, axes, said):
    sweep.write_text(sweep.read_text().replace(AXES, axes))
    assert said in scaling("run", sweep, "--cpus", 2, *options, cwd=sweep.parent, code=2).stderr
    assert rows(sweep.parent) == []


def test_a_pack_spread_over_two_processes_gives_the_rows_of_runs_alone(sweep, tmp_path):
    sweep.write_text(
        """
name: own
base:
  model: {width: 16, depth: 1, context: 5, subsequence: 2}
  data: {kind: tmaze, horizon: 5, episodes: 60, starts: episode, rtg_scale: 1.0}
  train: {amount: 20, batch: 5, evaluations: 2}
  evaluate: {env: own, episodes: 3, targets: [1.0]}
axes:
  data.fraction, seed: [[0.5, 0], [1.0, 1], [1.0, 2]]
"""
    )
    scaling("run", sweep, "--pack", 3, "--workers", 2, "--cpus", 2, cwd=tmp_path)
    spread, runs = {row["run_id"]: row for row in rows(tmp_path)}, identify(grid.read(sweep))
    assert spread.keys() == runs.specs.keys()
    for name, spec in runs.specs.items():
        alone = train.train(spec, runs.store(spec)).row
        assert_rows_equal(spread[name], {**alone, "processes": 2, "threads": 1})
        assert spread[name]["packed"] == 3


def test_a_spread_pack_that_is_told_to_stop_saves_each_run_and_goes_on_later(sweep, tmp_path):
    sweep.write_text(sweep.read_text().replace("amount: 20", "amount: 400").replace("[16, 24]", "[16]"))
    command = [SCALING, "run", str(sweep), "--pack", "3", "--workers", "2", "--cpus", "2", "--checkpoint-every", "0.1"]
    began = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("runs/*/checkpoint.pt"))) < 3:
        assert began.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    began.send_signal(signal.SIGTERM)
    said, _ = began.communicate(timeout=120)
    assert began.returncode == 75, said
    assert "3 runs left" in said
    scaling("run", sweep, "--pack", 3, "--workers", 2, "--cpus", 2, cwd=tmp_path)
    assert [(row["status"], row["resumes"] >= 1) for row in rows(tmp_path)] == [("done", True)] * 3
