"""Any CSV or Parquet file as a frame whose columns have the names that laws use."""

import json
import re
import zlib
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
NUMBERS = ("fraction", "draw", "C", "exposures", "train_seconds", "score")
"""Columns of our own tables that must be numbers to be used for what they are called."""
NESTED = ("curve", "returns")
FIELD = r"\b(?:model|data|train|evaluate)\.\w+"
"""A field of a spec in an expression."""


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
        where: expression that is true for the rows to keep, such as ``step > 1000 and lr == 0.001``; fields of the
            runs' specs go by their dotted names, ``data.selection == 'random'``.

    Raises:
        UserError: the file cannot be read, or an expression cannot be computed.

    """
    frame = _sound(_load(path))
    for name, expression in (columns or {}).items():
        frame = frame.assign(**{name: _evaluate(frame, expression, f"column {name}")})
    if where is None:
        return Table(frame)
    keep = _evaluate(*_with_fields(frame, where), "where")
    if not isinstance(keep, pd.Series) or not pd.api.types.is_bool_dtype(keep):
        raise UserError(f"where must be true or false for every row: {where!r}; for example 'loss > 0'")
    keep = keep.fillna(False).astype(bool)
    return Table(frame[keep].reset_index(drop=True), {f"not where {where}": int((~keep).sum())})


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
    except (OSError, EOFError, zlib.error, ValueError) as error:
        text = bool(suffixes) and suffixes[-1].lower() in DELIMITED
        what = "not readable as delimited text" if text else "not readable as Parquet"
        raise UserError(f"{path}: {what} ({str(error).splitlines()[0]}); tables are .parquet, .csv or .tsv") from error
    return frame


def _parquet(path: Path) -> pd.DataFrame:
    try:
        schema = pq.read_schema(path)
    except pa.ArrowInvalid as error:
        raise ValueError(str(error)) from error
    ours = b"schema_version" in (schema.metadata or {})
    table = results.read_table(path) if ours else pq.read_table(path, partitioning=None)
    frame: pd.DataFrame = table.to_pandas(ignore_metadata=not ours)
    return frame


def _sound(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame without columns that only bear a name of ours, a saved index, or nested values nobody asked for."""
    wrong = [name for name in NUMBERS if name in frame and not _is_numeric(frame[name])]
    wrong += [str(name) for name in frame if str(name).startswith("Unnamed: ")]
    for name in (n for n in frame if n in NESTED or pd.api.types.is_object_dtype(frame[n])):
        values = frame[name].dropna()
        nested = values.map(lambda value: isinstance(value, list | dict | np.ndarray)).to_numpy(bool)
        if nested.any() != (name in NESTED) or nested.any() != nested.all():
            wrong.append(str(name))
    if "spec" in frame and not _holds_specs(frame):
        wrong.append("spec")
    return frame.drop(columns=wrong)


def _is_numeric(values: pd.Series) -> bool:
    """Whether everything that is there is a number."""
    return bool(pd.to_numeric(values, errors="coerce").isna().sum() == values.isna().sum())


def _holds_specs(frame: pd.DataFrame) -> bool:
    """Whether the column holds the specs of our runs, as far as they are there."""
    try:
        specs = [json.loads(spec) for spec in frame["spec"].dropna()]
    except (TypeError, ValueError):
        return False
    known = all(isinstance(spec, dict) and {"model", "data", "train", "seed"} <= spec.keys() for spec in specs)
    return known and {"dataset", "seed", "draw"} <= set(frame.columns)


def _with_fields(frame: pd.DataFrame, expression: str) -> tuple[pd.DataFrame, str]:
    """The frame with the fields of the specs that an expression names, and the expression with their names quoted."""
    names = set(re.findall(FIELD, expression))
    if not names or "spec" not in frame or not frame["spec"].notna().all():
        return frame, expression
    try:
        return results.with_fields(frame, *names), re.sub(f"({FIELD})", r"`\1`", expression)
    except KeyError as error:
        raise UserError(f"where: the runs' specs have no field {error}; see scaling/spec.py") from error


def _evaluate(frame: pd.DataFrame, expression: str, what: str) -> Any:
    """A column, or what an expression of columns gives."""
    if expression in frame:
        return frame[expression]
    whole = dict.fromkeys(frame.columns[[pd.api.types.is_integer_dtype(kind) for kind in frame.dtypes]], "float64")
    try:
        found = frame.astype(whole).eval(expression, engine="python")  # whole numbers could overflow
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
