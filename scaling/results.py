"""The one table: a row per run, with units and meanings in the Parquet schema itself."""

import datetime
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from scaling.errors import UserError
from scaling.root import Folder, Root

if TYPE_CHECKING:  # half a second for whoever only looks how a sweep stands
    import pandas as pd

SCHEMA_VERSION = 1
"""Raised when a column changes its name, unit or meaning."""

DONE, FAILED = "done", "failed"

READERS = 16
"""Files of a root that are read at a time; each may be a request to an object store."""


@dataclass(frozen=True)
class Column:
    """One column of the table."""

    name: str
    type: pa.DataType
    unit: str
    meaning: str
    repeatable: bool = True
    """Whether the same spec gives the same value again, on the same machine and code."""


CURVE = pa.list_(pa.struct([("update", pa.int64()), ("loss", pa.float64())]))

COLUMNS = (
    Column("run_id", pa.string(), "", "content hash of the spec and the dataset"),
    Column("status", pa.string(), "", "done or failed; numbers of a failed run are missing"),
    Column("error", pa.string(), "", "why the run failed"),
    Column("kind", pa.string(), "", "model.kind"),
    Column("width", pa.int64(), "channels", "residual width"),
    Column("depth", pa.int64(), "layers", "number of layers"),
    Column("context", pa.int64(), "timesteps", "steps per window"),
    Column("fraction", pa.float64(), "", "share of the training data that was asked for"),
    Column("draw", pa.int64(), "", "random order the fraction was taken from"),
    Column("seed", pa.int64(), "", "seed of weights, window order and dropout"),
    Column("N", pa.int64(), "parameters", "trainable parameters outside the input embeddings"),
    Column("N_total", pa.int64(), "parameters", "all trainable parameters"),
    Column("N_blocks", pa.int64(), "parameters", "parameters of the layers alone, without embeddings and head"),
    Column("D", pa.int64(), "transitions", "distinct transitions in the training subset"),
    Column("episodes", pa.int64(), "episodes", "episodes in the training subset"),
    Column("return_quantiles", pa.list_(pa.float64()), "reward", "of the subset's returns, at 0, 1/4, 1/2, 3/4, 1"),
    Column("return_sd", pa.float64(), "reward", "standard deviation of the subset's returns"),
    Column("coverage", pa.float64(), "", "share of 4,096 cells of state and action that the subset visits"),
    Column("entropy", pa.float64(), "nats", "of the subset's states and actions, from neighbours of 2,000 of them"),
    Column("updates", pa.int64(), "updates", "optimiser steps taken"),
    Column("tokens_seen", pa.int64(), "tokens", "3 x context x batch x updates, padding included"),
    Column("exposures", pa.float64(), "passes", "supervised timesteps divided by D, padding excluded"),
    Column("C", pa.float64(), "FLOPs", "training, counted per architecture; backward taken as twice forward"),
    Column("loss", pa.float64(), "", "held-out action loss after the last update"),
    Column("loss_best", pa.float64(), "", "lowest held-out action loss on the run's curve"),
    Column("loss_constant", pa.float64(), "", "held-out loss of the best constant prediction on the training subset"),
    Column("tuned", pa.bool_(), "", "has its model's best values of what is tuned; empty where nothing is"),
    Column("curve", CURVE, "", "held-out action loss along training"),
    Column("held_out", pa.int64(), "transitions", "held-out transitions behind each loss"),
    Column("score", pa.float64(), "%", "mean return between random play and D4RL's v2 expert, or the human of Atari"),
    Column("return_mean", pa.float64(), "reward", "mean undiscounted return of the rollouts"),
    Column("returns", pa.list_(pa.float64()), "reward", "undiscounted return of each rollout"),
    Column("train_seconds", pa.float64(), "s", "updates alone", repeatable=False),
    Column("evaluate_seconds", pa.float64(), "s", "held-out losses and rollouts", repeatable=False),
    Column(
        "samples_per_second", pa.float64(), "windows/s", "windows trained on per second of updating", repeatable=False
    ),
    Column(
        "peak_memory",
        pa.float64(),
        "bytes",
        "largest resident memory of the process; on a GPU its allocated memory",
        repeatable=False,
    ),
    Column("dataset", pa.string(), "", "content digest of the dataset"),
    Column("kernel", pa.string(), "", "implementation of the scan that was used"),
    Column("device", pa.string(), "", "processor or GPU"),
    Column("threads", pa.int64(), "threads", "CPU threads per process"),
    Column("processes", pa.int64(), "processes", "data-parallel processes"),
    Column("micro_batches", pa.int64(), "", "parts a process's share of a batch was computed in, for want of memory"),
    Column("packed", pa.int64(), "", "runs trained together when this one began, itself included", repeatable=False),
    Column("resumes", pa.int64(), "", "times the run went on from a checkpoint", repeatable=False),
    Column("finished", pa.string(), "", "UTC time of the row", repeatable=False),
    Column("git_commit", pa.string(), "", "commit of the code; -dirty where files were changed"),
    Column("versions", pa.string(), "", "JSON: versions of the packages that matter"),
    Column("spec", pa.string(), "", "JSON: the whole spec of the run"),
)


def schema_of(columns: tuple[Column, ...]) -> pa.Schema:
    """The columns with their units and meanings, as Parquet keeps them."""
    fields = [pa.field(c.name, c.type, metadata={"unit": c.unit, "meaning": c.meaning}) for c in columns]
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION)})


SCHEMA = schema_of(COLUMNS)

BY_NAME = {column.name: column for column in COLUMNS}


def label(name: str) -> str:
    """Axis label of a column: its name, and its unit where it has one."""
    unit = BY_NAME[name].unit if name in BY_NAME else ""
    return f"{name} [{unit}]" if unit else name


def row_path(run_id: str) -> str:
    """Where in the root a run's row lies once the run has ended."""
    return f"{run_id}/row.parquet"


def write_row(root: Root, row: Mapping[str, Any]) -> None:
    """Write one row so that readers see all of it or nothing. Missing columns become null."""
    unknown = set(row) - set(SCHEMA.names)
    if unknown:
        raise KeyError(f"not in the schema: {', '.join(sorted(unknown))}")
    finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    table = pa.Table.from_pylist([{**row, "finished": finished}], schema=SCHEMA)
    root.write(row_path(row["run_id"]), to_bytes(table))


def to_bytes(table: pa.Table) -> bytes:
    """The table as the content of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table to a file; readers see all of it or nothing."""
    Folder(path.parent).write(path.name, to_bytes(table))


def read_row(root: Root, run_id: str) -> dict[str, Any] | None:
    """The run's row, or nothing when the run has not ended."""
    row: list[dict[str, Any]] = collect(root, [run_id]).to_pylist()
    return row[0] if row else None


def collect(root: Root, run_ids: list[str]) -> pa.Table:
    """The rows of these runs that have ended, in the given order."""
    tables = read_all(root, [row_path(run_id) for run_id in run_ids], read_table)
    return pa.concat_tables([SCHEMA.empty_table(), *tables])


def brief(root: Root, run_ids: list[str], names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Some columns of the rows that exist, by run_id."""
    wanted = ["run_id", *names]

    def read(source: pa.BufferReader, path: str) -> pa.Table:
        try:
            with pq.ParquetFile(source) as file:
                return file.read(columns=wanted, use_threads=False)
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"{path}: not a readable Parquet file; remove it, and the run is done again") from error

    tables = read_all(root, [row_path(run_id) for run_id in run_ids], read)
    rows = pa.concat_tables(tables).to_pylist() if tables else []
    return {row["run_id"]: row for row in rows}


def read_all(root: Root, paths: list[str], read: Callable[[pa.BufferReader, str], pa.Table]) -> list[pa.Table]:
    """The tables among these files of a root that exist; from an object store, several are fetched at a time."""
    contents: Iterable[bytes | None]
    if isinstance(root, Folder) or len(paths) == 1:
        contents = map(root.read, paths)
    else:
        with ThreadPoolExecutor(READERS) as pool:
            contents = list(pool.map(root.read, paths))
    return [
        read(pa.BufferReader(content), f"{root.uri}/{path}")
        for path, content in zip(paths, contents, strict=True)
        if content is not None
    ]


def read_table(source: Path | pa.BufferReader, path: Path | str | None = None) -> pa.Table:
    """A results table, from a file or from the content of one that lies at ``path``.

    Raises:
        UserError: not a Parquet file, or written under another schema version.

    """
    path = path or source
    try:
        table = pq.read_table(source, partitioning=None, use_threads=False)
    except (OSError, pa.ArrowInvalid) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "not a readable Parquet file"
        raise UserError(f"{path}: {reason}; a results table comes from 'scaling collect'") from error
    version = (table.schema.metadata or {}).get(b"schema_version", b"none").decode()
    if version != str(SCHEMA_VERSION):
        raise UserError(
            f"{path}: results of schema version {version}, this is version {SCHEMA_VERSION}; "
            "collect again with the runs of this version, or use the version that wrote it"
        )
    return _complete(table)


def _complete(table: pa.Table) -> pa.Table:
    """The table with every column of the schema; those that came later are empty in it."""
    for field in SCHEMA:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(SCHEMA.names).cast(SCHEMA)


def with_fields(frame: "pd.DataFrame", *names: str) -> "pd.DataFrame":
    """The table with fields of the runs' specs as columns, called by their dotted names, such as ``model.dt_init``."""
    specs = [json.loads(spec) for spec in frame["spec"]]
    return frame.assign(**{name: [field_of(spec, name) for spec in specs] for name in names})


def field_of(spec: dict[str, Any], name: str) -> Any:
    """The value of a field in a spec as plain values, by its dotted name."""
    part, _, leaf = name.rpartition(".")
    return (spec[part] if part else spec)[leaf]


def read_frame(path: Path) -> "pd.DataFrame":
    """A results table as a data frame."""
    return read_table(path).to_pandas()
