"""The rows that a fit uses, and which of them belong together."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from scaling.errors import UserError
from scaling.table import Table

ROW, CELL, SUBSET, RUN = "row", "cell", "subset", "run"
RUN_COLUMNS = ("run_id", "run", "run_name", "run_uid", "trial")
WITHIN = 2.0
"""Largest ratio of transitions between random subsets of one fraction."""
SETTINGS = ("kind", "width", "depth", "context", "fraction")


@dataclass(frozen=True, eq=False)
class Data:
    """Usable rows."""

    log_x: Mapping[str, np.ndarray]
    """Natural logarithm of each input, (row,), centred."""
    centre: Mapping[str, float]
    log_loss: np.ndarray
    cell: np.ndarray
    """(row,): number of the configuration; runs of one cell differ in seed or draw alone."""
    cluster: np.ndarray
    """(row,): number of the unit that is resampled as a whole."""
    unit: str
    """What a cluster is.

    ``run``, checkpoints of one training run; ``subset``, runs on the same random subset of the data; ``cell``, runs of
    one configuration; ``row``.
    """
    frame: pd.DataFrame
    loss: str
    refused: Mapping[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.log_loss)

    @property
    def clusters(self) -> int:
        """Number of units that are resampled."""
        return int(self.cluster.max()) + 1


def prepare(table: Table | pd.DataFrame, loss: str, inputs: tuple[str, ...], cluster: str | None = None) -> Data:
    """The usable rows of a table; rows whose ``status`` is failed are left out and counted.

    Args:
        table: the rows.
        loss: the column to explain.
        inputs: the columns that explain it.
        cluster: column that names the training run where several rows are checkpoints of one; by default a column
            called run_id, run, run_name, run_uid or trial, if rows share its values and model size.

    Raises:
        UserError: a column is missing or constant, a value has no logarithm, a run stands there twice, or fewer than
            two rows remain.

    """
    table = Table(table) if isinstance(table, pd.DataFrame) else table
    frame, refused = table.frame, dict(table.refused)
    wanted = [loss, *inputs] + ([cluster] if cluster else [])
    missing = [name for name in wanted if name not in frame]
    if missing:
        known = ", ".join(map(str, frame.columns))
        raise UserError(
            f"the table has no column {missing[0]!r}; it has {known}; map one with --column {missing[0]}=NAME"
        )
    if "status" in frame and (frame["status"] == "failed").any():
        refused["failed run"] = int((frame["status"] == "failed").sum())
        frame = frame[frame["status"] != "failed"]
    frame, untuned = without_untuned(frame)
    refused |= untuned
    frame = frame.reset_index(drop=True)
    if "fraction" in frame and not _is_share_of_data(frame):
        frame = frame.drop(columns="fraction")
    if len(frame) < 2:
        raise UserError(f"{len(frame)} usable row(s); a fit needs at least 2")
    values = {name: _positive(frame, name) for name in (loss, *inputs)}
    _refuse_repeated(frame, list(dict.fromkeys((*inputs, loss))))
    frame = frame.assign(**values)
    logs = {name: np.log(values[name]) for name in inputs}
    centre = {name: float(x.mean()) for name, x in logs.items()}
    cell = cells_of(frame, inputs)
    unit, clusters = _units(frame, cell, cluster)
    return Data(
        log_x={name: x - centre[name] for name, x in logs.items()},
        centre=centre,
        log_loss=np.log(values[loss]),
        cell=cell,
        cluster=clusters,
        unit=unit,
        frame=frame,
        loss=loss,
        refused=refused,
    )


def without_untuned(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """The runs at their model's best setting of what was tuned, and how many others were left out, if any."""
    if "tuned" not in frame or not frame["tuned"].eq(False).any():
        return frame, {}
    other = frame["tuned"].eq(False)
    return frame[~other], {"not at its model's best setting": int(other.sum())}


def subset(data: Data, keep: np.ndarray) -> Data:
    """The rows where ``keep`` is true, with the same centres."""
    return dataclasses.replace(
        data,
        log_x={name: values[keep] for name, values in data.log_x.items()},
        log_loss=data.log_loss[keep],
        cell=np.unique(data.cell[keep], return_inverse=True)[1],
        cluster=np.unique(data.cluster[keep], return_inverse=True)[1],
        frame=data.frame[keep].reset_index(drop=True),
    )


def thin(data: Data, rows: int, seed: int = 0) -> Data:
    """About ``rows`` rows at most, drawn at random, with those of the largest inputs; the others count as left out."""
    if data.rows <= rows:
        return data
    keep = np.zeros(data.rows, bool)
    keep[np.random.default_rng(seed).choice(data.rows, rows, replace=False)] = True
    for x in data.log_x.values():
        keep[int(np.argmax(x))] = True
    reason = {"not in the random sample that stands for a large table": int((~keep).sum())}
    return dataclasses.replace(subset(data, keep), refused=dict(data.refused) | reason)


def levels(data: Data, name: str) -> np.ndarray:
    """(row,) level of an input; draws of one fraction differ in size and yet are one level of D."""
    by_fraction = name == "D" and "fraction" in data.frame and data.frame["fraction"].notna().all()
    return data.frame["fraction"].to_numpy(float) if by_fraction else data.log_x[name]


def cells_of(frame: pd.DataFrame, inputs: tuple[str, ...]) -> np.ndarray:
    """(row,) number of the configuration: all that the spec says but seed, draw and where the data lies.

    Tables without specs fall back on the inputs and on kind, width, depth, context and fraction, as far as they exist;
    with a fraction, D itself is left to vary from draw to draw.
    """
    if has_specs(frame):
        settled = settings(frame).drop(columns=["seed", "data.draw"]).map(str)
        return settled.groupby(list(settled.columns), sort=False).ngroup().to_numpy()
    known = [name for name in SETTINGS if name in frame]
    keys = list(dict.fromkeys((*known, *(name for name in inputs if name != "D" or "fraction" not in known))))
    return frame.groupby(keys, sort=False, dropna=False).ngroup().to_numpy() if keys else np.zeros(len(frame), int)


def has_specs(frame: pd.DataFrame) -> bool:
    """Whether every row says what it was run with."""
    return "spec" in frame and bool(frame["spec"].notna().all())


def settings(frame: pd.DataFrame) -> pd.DataFrame:
    """A column per field of the spec that can move a loss, with the dataset's digest."""
    fields = pd.json_normalize([json.loads(spec) for spec in frame["spec"]])
    unrelated = [name for name in fields if str(name).startswith("evaluate.")] + ["data.path", "data.kind"]
    return fields.drop(columns=unrelated).assign(dataset=frame["dataset"].to_numpy())


def _units(frame: pd.DataFrame, cell: np.ndarray, cluster: str | None) -> tuple[str, np.ndarray]:
    """What is resampled as a whole, and the number of each row's unit."""
    if cluster is not None:
        return RUN, _numbers(frame, [cluster])
    for name in RUN_COLUMNS:
        if name in frame and frame[name].notna().all() and frame[name].nunique() < len(frame):
            sizes = frame.groupby(name)["N"].nunique() if "N" in frame else pd.Series([1])
            if (sizes == 1).all():
                return RUN, _numbers(frame, [name])
    if {"fraction", "draw"} <= set(frame.columns) and frame["draw"].nunique() > 1:
        return SUBSET, _numbers(frame, ["fraction", "draw"])
    return (CELL, cell) if cell.max() + 1 < len(frame) else (ROW, np.arange(len(frame)))


def _is_share_of_data(frame: pd.DataFrame) -> bool:
    """Whether ``fraction`` says how much data a run saw: then D hardly varies within one."""
    share = pd.to_numeric(frame["fraction"], errors="coerce")
    amount = pd.to_numeric(frame["D"], errors="coerce") if "D" in frame else share
    if not (share > 0).all() or not (share <= 1).all() or not (amount > 0).all():
        return False
    spread = amount.groupby(share).agg(["min", "max"])
    return bool((spread["max"] < WITHIN * spread["min"]).all())


def _numbers(frame: pd.DataFrame, columns: list[str]) -> np.ndarray:
    return frame.groupby(columns, sort=False, dropna=False).ngroup().to_numpy()


def _positive(frame: pd.DataFrame, name: str) -> np.ndarray:
    """The column as positive numbers."""
    values = pd.to_numeric(frame[name], errors="coerce").to_numpy(float)
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        row = int(np.argmax(bad))
        raise UserError(
            f"column {name!r} must be positive to take its logarithm; row {row} holds {_shown(frame[name].iloc[row])} "
            f"({int(bad.sum())} such rows of {len(frame)}); repair them, or leave them out with --where"
        )
    return values


def _shown(value: object) -> str:
    """A value as the user wrote it."""
    return repr(value.item() if isinstance(value, np.generic) else value)


def _refuse_repeated(frame: pd.DataFrame, values: list[str]) -> None:
    """No run may stand in the table twice: it would count as evidence twice."""
    by_name = [name for name in RUN_COLUMNS if name in frame and frame[name].notna().all()][:1]
    plain = [name for name in frame.columns if not isinstance(frame[name].iloc[0], (list, dict, np.ndarray))]
    twice = frame.duplicated(subset=by_name + values if by_name else plain, keep=False).to_numpy()
    if twice.any():
        rows = np.flatnonzero(twice)
        raise UserError(
            f"rows {rows[0]} and {rows[1:][0]} are the same run ({int(twice.sum())} such rows); "
            "each run may stand in the table once"
        )
