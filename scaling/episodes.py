"""The second table: a row per rolled-out episode, beside the one that has a row per run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from scaling.errors import UserError
from scaling.results import Column, read_all, schema_of, to_bytes
from scaling.root import Root

if TYPE_CHECKING:  # half a second for whoever only looks how a sweep stands
    import pandas as pd

COLUMNS = (
    Column("run_id", pa.string(), "", "the run whose network played"),
    Column("env", pa.string(), "", "evaluate.env"),
    Column("target", pa.float64(), "reward", "return that was asked for"),
    Column("episode", pa.int64(), "", "number of the episode; equal numbers begin alike in every run"),
    Column("seed", pa.int64(), "", "seed of the environment"),
    Column("return", pa.float64(), "reward", "undiscounted return, as the environment pays it"),
    Column("length", pa.int64(), "timesteps", "steps until the episode ended"),
    Column("score", pa.float64(), "%", "return between random play (0) and the reference player (100)"),
)

SCHEMA = schema_of(COLUMNS)


def path_of(run_id: str) -> str:
    """Where in the root a run's episodes lie once it has been rolled out."""
    return f"{run_id}/episodes.parquet"


def beside(table: Path) -> Path:
    """Where the episodes of a results table lie: ``x.parquet`` has ``x.episodes.parquet``."""
    return table.with_suffix(".episodes.parquet")


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    """The table of episodes given as rows."""
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def write(root: Root, run_id: str, rows: list[dict[str, Any]]) -> None:
    """Write a run's episodes so that readers see all of them or nothing."""
    root.write(path_of(run_id), to_bytes(table_of(rows)))


def collect(root: Root, run_ids: list[str]) -> pa.Table:
    """The episodes of these runs that were rolled out, in the given order."""
    return pa.concat_tables([SCHEMA.empty_table(), *read_all(root, [path_of(name) for name in run_ids], read_table)])


def read_table(source: Path | pa.BufferReader, path: Path | str | None = None) -> pa.Table:
    """A table of episodes, from a file or from the content of one that lies at ``path``.

    Raises:
        UserError: not a Parquet file of episodes.

    """
    path = path or source
    try:
        table = pq.read_table(source, partitioning=None, use_threads=False)
    except (OSError, pa.ArrowInvalid) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "not a readable Parquet file"
        raise UserError(f"{path}: {reason}; a table of episodes comes from 'scaling collect'") from error
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise UserError(f"{path}: not a table of episodes, it lacks {', '.join(missing)}")
    return table.select(SCHEMA.names).cast(SCHEMA)


def read_frame(path: Path) -> "pd.DataFrame":
    """A table of episodes as a data frame."""
    return read_table(path).to_pandas()
