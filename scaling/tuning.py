"""Which value of a tuned field each model keeps.

A sweep may try several learning rates at every size and let each size keep its best: then what size does is not what
one learning rate does to it. All runs stay in the table; fits leave out those that were not the best.

CHOICE: best is the lowest mean log of ``loss_best`` over the subsets and seeds that all values of the model share, for
a model as a whole and not for each subset, so that a choice rests on as many runs as possible.
"""

import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from scaling import results


def mark(table: pa.Table, tuned: tuple[str, ...]) -> pa.Table:
    """The table with its column ``tuned`` filled in.

    Args:
        table: rows of one sweep; failed ones are never the best.
        tuned: dotted names of the tuned fields.

    """
    frame = table.select(["status", "loss_best", "spec"]).to_pandas()
    frame["value"] = [_values(spec, tuned) for spec in frame["spec"]]
    frame["model"] = [json.dumps(json.loads(spec)["model"], sort_keys=True) for spec in frame["spec"]]
    frame["cell"] = [_cell(spec, tuned) for spec in frame["spec"]]
    frame["log_loss"] = np.log(frame["loss_best"].where(frame["status"] == results.DONE).astype(float))
    best = {model: _best(rows) for model, rows in frame.groupby("model")}
    chosen = frame["value"] == frame["model"].map(best)
    place = table.schema.get_field_index("tuned")
    return table.set_column(place, results.SCHEMA.field("tuned"), pa.array(chosen, pa.bool_()))


def _best(rows: pd.DataFrame) -> str:
    """Of the values that ended in as many cells as any, the one with the lowest mean loss where all of them did."""
    losses = rows.pivot_table(index="cell", columns="value", values="log_loss", dropna=False)
    complete = losses.loc[:, losses.notna().sum() == losses.notna().sum().max()]
    return str(complete.dropna().mean().fillna(np.inf).idxmin())


def _values(spec: str, tuned: tuple[str, ...]) -> str:
    values: dict[str, Any] = json.loads(spec)
    return json.dumps([results.field_of(values, name) for name in tuned])


def _cell(spec: str, tuned: tuple[str, ...]) -> str:
    """The spec without the tuned fields."""
    values: dict[str, Any] = json.loads(spec)
    for name in tuned:
        part, _, leaf = name.rpartition(".")
        del (values[part] if part else values)[leaf]
    return json.dumps(values, sort_keys=True)
