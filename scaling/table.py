"""Any CSV or Parquet file as a frame whose columns have the names that laws use."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from scaling import results
from scaling.errors import UserError
from scaling.plug import suggestion

DELIMITED = {".csv": ",", ".tsv": "\t", ".txt": None}


@dataclass(frozen=True, eq=False)
class Table:
    """A file's rows, with mapped columns."""

    frame: pd.DataFrame
    refused: Mapping[str, int] = field(default_factory=dict)
    """Reason to number of rows left out."""


def read(path: Path, columns: Mapping[str, str] | None = None, where: str | None = None) -> Table:
    """The rows of a table.

    Args:
        path: Parquet (as of ``scaling collect``, or any other) or delimited text (.csv, .tsv, also .gz).
        columns: new name to an existing column, or to an arithmetic expression of columns such as
            ``compute / (6 * N)``; in order, so that later ones may use earlier ones.
        where: expression that is true for the rows to keep, such as ``step > 1000 and lr == 0.001``.

    Raises:
        UserError: the file cannot be read, or an expression cannot be computed.

    """
    frame = _load(path)
    for name, expression in (columns or {}).items():
        frame = frame.assign(**{name: _evaluate(frame, expression, f"column {name}")})
    if where is None:
        return Table(frame)
    keep = _evaluate(frame, where, "where")
    if not isinstance(keep, pd.Series) or keep.dtype != bool:
        raise UserError(f"where must be true or false for every row: {where!r}; for example 'loss > 0'")
    return Table(frame[keep].reset_index(drop=True), {f"where {where}": int((~keep).sum())})


def _load(path: Path) -> pd.DataFrame:
    try:
        suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
        if suffixes and suffixes[-1].lower() in DELIMITED:
            delimiter = DELIMITED[suffixes[-1].lower()]
            frame = pd.read_csv(path, sep=delimiter, engine=None if delimiter else "python", low_memory=False)
        else:
            frame = _parquet(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: a folder, not a table") from error
    except (OSError, ValueError, pd.errors.ParserError, UnicodeDecodeError) as error:
        what = "not readable as delimited text" if suffixes and suffixes[-1] in DELIMITED else "not a Parquet file"
        raise UserError(f"{path}: {what} ({str(error).splitlines()[0]}); tables are .parquet, .csv or .tsv") from error
    return frame


def _parquet(path: Path) -> pd.DataFrame:
    try:
        schema = pq.read_schema(path)
    except pa.ArrowInvalid as error:
        raise ValueError(str(error)) from error
    ours = b"schema_version" in (schema.metadata or {})
    frame: pd.DataFrame = (results.read_table(path) if ours else pq.read_table(path, partitioning=None)).to_pandas()
    return frame


def _evaluate(frame: pd.DataFrame, expression: str, what: str) -> Any:
    """A column, or what an expression of columns gives."""
    if expression in frame:
        return frame[expression]
    try:
        found = frame.eval(expression, engine="python")
    except Exception as error:  # an expression can fail in any way
        known = [str(name) for name in frame.columns]
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = suggestion(expression, known)
        raise UserError(
            f"{what}: cannot compute {expression!r} ({reason}){hint}; columns: {', '.join(known)}"
        ) from error
    if isinstance(found, pd.Series | int | float | np.number):
        return found
    raise UserError(f"{what}: {expression!r} gives {type(found).__name__}, not a column")
