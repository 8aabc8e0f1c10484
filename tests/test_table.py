"""Any CSV or Parquet file: mapped columns, expressions, rows left out, runs and clusters, bad input."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scaling import data as prepared, fit as fits, table
from scaling.errors import UserError
from scaling.study import study

from conftest import loss_world, with_specs


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
    assert read.refused == {"not where seed == 1": 20}
    data = fits.prepare(read, "loss")
    assert data.rows == 20
    assert data.refused == {"not where seed == 1": 20}


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
        ("t.parquet", b"no parquet", "not readable as Parquet"),
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


@pytest.mark.parametrize(
    "strange",
    [
        {"spec": "adamw"},
        {"spec": '{"model": 1}'},
        {"fraction": "half"},
        {"fraction": 1.0},
        {"C": "conditioned"},
        {"exposures": "two"},
        {"train_seconds": "long"},
        {"curve": "[{1: 2}]"},
        {"score": "good"},
        {"notes": [[1, 2]] * 25 + [None] * 25},
        {"run": [{"id": 1}] * 50},
        {"Unnamed: 0": range(50)},
    ],
    ids=str,
)
def test_columns_that_only_bear_a_name_of_ours_change_nothing(tmp_path, strange):
    plain = loss_world(0.01)[["N", "D", "seed", "loss_best"]]
    path = tmp_path / "t.parquet"
    plain.assign(**strange).to_parquet(path)
    looked_at = study(table.read(path), "additive", draws=20)
    expected = study(plain, "additive", draws=20)
    assert looked_at.fit.parameters == expected.fit.parameters
    assert looked_at.data.unit == expected.data.unit
    assert looked_at.answer.probability == expected.answer.probability


def test_whole_numbers_do_not_overflow_in_expressions(tmp_path):
    frame = pd.DataFrame({"n": [10**12, 3 * 10**12], "d": [10**9, 4 * 10**9]})
    frame.to_parquet(tmp_path / "t.parquet")
    read = table.read(tmp_path / "t.parquet", {"C": "6 * n * d"})
    assert read.frame["C"].tolist() == [6e21, 7.2e22]


def test_nullable_and_indexed_columns_are_columns(tmp_path):
    frame = loss_world(0.01).astype({"seed": "Int64"}).set_index("N")
    frame.to_parquet(tmp_path / "t.parquet")
    read = table.read(tmp_path / "t.parquet", where="seed == 1")
    assert fits.prepare(read, "loss_best").rows == 25


def test_a_run_that_stands_twice_is_seen_through_a_saved_index(tmp_path):
    frame = pd.concat([loss_world(0.01), loss_world(0.01)[:1]], ignore_index=True)
    frame.to_csv(tmp_path / "t.csv")
    with pytest.raises(UserError, match="rows 0 and 50 are the same run"):
        fits.prepare(table.read(tmp_path / "t.csv"), "loss_best")


def test_a_truncated_archive_is_named(tmp_path):
    path = write(foreign(), tmp_path / "t.csv.gz")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="not readable as delimited text"):
        table.read(path)


def test_rows_are_kept_by_fields_of_their_specs(tmp_path):
    frame = with_specs(loss_world(0.01), [1e-3, 2e-3]).assign(draw=lambda f: f["seed"])
    path = tmp_path / "t.parquet"
    frame.to_parquet(path)
    kept = table.read(path, where="train.learning_rate == 0.002 and data.fraction > 0.2").frame
    expected = frame[(frame.index % 2 == 1) & (frame["fraction"] > 0.2)]
    assert kept["loss_best"].tolist() == expected["loss_best"].tolist()
    assert list(kept.columns) == list(frame.columns)
    with pytest.raises(UserError, match="specs have no field 'slection'"):
        table.read(path, where="data.slection == 1")
