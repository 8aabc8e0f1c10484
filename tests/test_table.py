"""Any CSV or Parquet file: mapped columns, expressions, rows left out, runs and clusters, bad input."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scaling import data as prepared, fit as fits, table
from scaling.errors import UserError

from conftest import loss_world


def foreign(rows: int = 40) -> pd.DataFrame:
    """A table as other people write it."""
    world = loss_world(0.01)[:rows]
    world["compute used"] = 6 * world["N"] * world["D"]
    return world.rename(columns={"N": "params", "loss_best": "eval/loss"})[
        ["params", "compute used", "eval/loss", "seed"]
    ]


def write(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        text = frame.to_csv(index=False, sep="\t" if ".tsv" in path.suffixes else ",")
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz", "t.parquet"])
def test_columns_are_mapped_from_names_and_expressions_in_every_format(tmp_path, name):
    path = write(foreign(), tmp_path / name)
    columns = {"N": "params", "D": "`compute used` / (6 * N)", "loss": "eval/loss"}
    read = table.read(path, columns, "seed == 1")
    world = loss_world(0.01)[:40]
    world = world[world["seed"] == 1]
    np.testing.assert_allclose(read.frame["D"], world["D"], rtol=1e-12)
    np.testing.assert_allclose(read.frame["loss"], world["loss_best"], rtol=1e-12)
    assert read.refused == {"where seed == 1": 20}
    data = fits.prepare(read, "loss")
    assert data.rows == 20
    assert data.refused == {"where seed == 1": 20}


@pytest.mark.parametrize(
    ("columns", "where", "said"),
    [
        (
            {"N": "parms"},
            None,
            r"column N: cannot compute 'parms' .*did you mean 'params'.*columns: params, compute used",
        ),
        ({"N": "params +"}, None, "column N: cannot compute"),
        ({"N": "params.values.tobytes()"}, None, "column N: .* gives bytes, not a column"),
        ({}, "params", "where must be true or false for every row: 'params'"),
        ({}, "nothing > 1", "where: cannot compute 'nothing > 1'"),
    ],
)
def test_an_expression_that_cannot_be_used_is_named(tmp_path, columns, where, said):
    path = write(foreign(), tmp_path / "t.csv")
    with pytest.raises(UserError, match=said):
        table.read(path, columns, where)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("no.csv", None, "no such file"),
        ("t.parquet", b"no parquet", "not a Parquet file"),
        ("t.csv", b"", "not readable as delimited text"),
        ("t.csv", b"a,b\n1,2,3\n", "not readable|has no column"),
        ("t.csv", bytes([255, 254, 0, 200]), "not readable as delimited text"),
    ],
)
def test_a_file_that_is_no_table_is_named(tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        fits.prepare(table.read(path), "loss")


def test_checkpoints_of_a_run_are_one_cluster():
    frame = loss_world(0.01)
    frame["run_id"] = frame["N"].astype(int).astype(str) + "/" + frame["seed"].astype(str)
    data = fits.prepare(frame, "loss_best")
    assert data.unit == prepared.RUN
    assert data.clusters == 10
    assert (np.bincount(data.cluster) == 5).all()


def test_a_name_shared_by_models_of_different_sizes_is_no_run():
    data = fits.prepare(loss_world(0.01).assign(run=lambda f: f["D"].astype(str)), "loss_best")
    assert data.unit == prepared.CELL


def test_the_cluster_column_may_be_named():
    frame = loss_world(0.01).assign(experiment=lambda f: f["width"])
    data = fits.prepare(frame, "loss_best", cluster="experiment")
    assert (data.unit, data.clusters) == (prepared.RUN, 5)
    with pytest.raises(UserError, match="no column 'experimnt'"):
        fits.prepare(frame, "loss_best", cluster="experimnt")


def test_runs_on_one_subset_are_one_cluster():
    data = fits.prepare(loss_world(0.01).assign(draw=lambda f: f["seed"]), "loss_best")
    assert (data.unit, data.clusters) == (prepared.SUBSET, 10)


def test_rows_without_repetition_are_their_own_units():
    data = fits.prepare(loss_world(0.01, seeds=1).drop(columns=["fraction", "width", "depth"]), "loss_best")
    assert (data.unit, data.clusters) == (prepared.ROW, 25)
