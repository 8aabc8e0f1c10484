"""Packs through the command line, on a real local Ray and without."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scaling import results
from scaling.root import open_root

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
    said = scaling("run", sweep, "--address", "none", cwd=sweep.parent).stdout
    assert "own: 6 of 6 runs done" in said
    assert {row["packed"] for row in rows(sweep.parent)} <= {1, 2, 3}
    assert "6 to do" not in scaling("plan", sweep, cwd=sweep.parent).stdout


@pytest.mark.parametrize(
    ("options", "axes", "said"),
    [
        (("--pack", 0), AXES, "0 is not in the range x>=1"),
        (
            ("--pack", 2, "--workers", 2),
            AXES,
            "--pack 2 puts runs into one process, and --workers 2 a run into several",
        ),
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
