"""The table: units, atomic rows, versions."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scaling import results
from scaling.errors import UserError
from scaling.root import open_root


def test_a_row_comes_back_as_it_was_written_with_units_in_the_schema(tmp_path):
    results.write_row(
        open_root(tmp_path), {"run_id": "a", "status": "done", "N": 5, "curve": [{"update": 1, "loss": 0.5}]}
    )
    row = results.read_row(open_root(tmp_path), "a")
    assert row["N"] == 5
    assert row["curve"] == [{"update": 1, "loss": 0.5}]
    assert row["score"] is None
    assert row["finished"].endswith("+00:00")
    field = results.read_table(tmp_path / results.row_path("a")).schema.field("C")
    assert field.metadata[b"unit"] == b"FLOPs"


def test_a_column_that_the_schema_does_not_hold_is_refused(tmp_path):
    with pytest.raises(KeyError, match="wdith"):
        results.write_row(open_root(tmp_path), {"run_id": "a", "wdith": 5})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_row_and_nothing_else(tmp_path, monkeypatch):
    results.write_row(open_root(tmp_path), {"run_id": "a", "N": 1})

    def fails(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        results.write_row(open_root(tmp_path), {"run_id": "a", "N": 2})
    assert results.read_row(open_root(tmp_path), "a")["N"] == 1
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["row.parquet"]


def test_collect_takes_the_named_runs_in_order_and_passes_over_missing_and_temporary_ones(tmp_path):
    for name in ("b", "a", "c"):
        results.write_row(open_root(tmp_path), {"run_id": name})
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ".row.parquet.123").write_bytes(b"half")
    table = results.collect(open_root(tmp_path), ["a", "d", "b"])
    assert table["run_id"].to_pylist() == ["a", "b"]
    assert table.schema.equals(results.SCHEMA, check_metadata=True)


def test_a_table_of_another_schema_version_is_refused(tmp_path):
    path = tmp_path / "old.parquet"
    pq.write_table(results.SCHEMA.empty_table().replace_schema_metadata({"schema_version": "0"}), path)
    with pytest.raises(UserError, match="results of schema version 0, this is version 1"):
        results.read_table(path)


@pytest.mark.parametrize("content", [None, b"", b"no parquet"])
def test_a_file_that_is_no_table_is_refused(tmp_path, content):
    path = tmp_path / "x.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=str(path)):
        results.read_table(path)


def test_every_column_says_what_it_means():
    assert all(column.meaning for column in results.COLUMNS)
    assert len(results.BY_NAME) == len(results.COLUMNS)
    assert results.label("D") == "D [transitions]"
    assert results.label("loss") == "loss"
    assert isinstance(results.SCHEMA, pa.Schema)
