"""Which runs would teach most: greedy design by linearised information.

With g_i = d log L_i / d theta, the information in the table is sum g_i g_i^T, and the variance of a contrast c of
theta is c^T information^-1 c, up to the noise; one more run of a cell adds its g g^T (Atkinson, Donev & Tobias 2007,
section 10.2 on c-optimal designs). Parameters are kept identifiable by a ridge far below the information at hand.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import yaml

from scaling.data import SETTINGS
from scaling.errors import UserError
from scaling.fit import Fit
from scaling.law import names
from scaling.results import field_of
from scaling.spec import PARTS, upgraded

VERDICT, DATA_GAIN, MODEL_GAIN = "verdict", "data_gain", "model_gain"
QUANTITIES = (VERDICT, DATA_GAIN, MODEL_GAIN)
MOST = 60
SIZE = {key: (f"model.{key}",) for key in ("kind", "width", "depth", "context")}
FIELDS = SIZE | {"fraction": ("data.fraction", "data.transitions")}
"""Fields of the spec behind each setting of a cell."""
OF_DATASET = ("data.kind", "data.path", "data.parts", "data.step_limit")
"""Fields that say where a dataset lies."""
"""Sizes, and amounts of data, among which runs are proposed."""


@dataclass(frozen=True)
class Cell:
    """A configuration worth running."""

    settings: Mapping[str, Any]
    """Column to value: what identifies the cell in the table."""
    N: float
    D: float
    variance_left: float
    """Share of the variance of the quantity that would remain after this run and those named before it."""

    def in_words(self) -> str:
        """The cell in a phrase."""
        said = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return said or f"N {self.N:g}, D {self.D:g}"


def candidates(fitted: Fit) -> pd.DataFrame:
    """A row per configuration that could be run: every size of the table with every amount of its data."""
    frame = fitted.data.frame
    by_fraction = "fraction" in frame
    known = [name for name in SETTINGS if name in frame and name != "fraction"]
    extra = [name for name in fitted.law.inputs if name not in (*known, "N", "D")]
    sizes = frame.drop_duplicates([*known, "N"])[[*known, "N"]]
    amounts = frame.groupby("fraction" if by_fraction else "D", as_index=False)[
        ["D", *extra] if by_fraction else extra or ["N"]
    ].mean()
    amounts = amounts[[*(["fraction"] if by_fraction else []), "D", *extra]]
    return _spread(sizes, "N").merge(_spread(amounts, "D"), how="cross")


def _spread(frame: pd.DataFrame, by: str) -> pd.DataFrame:
    """At most :data:`MOST` rows, evenly over the ranks of a column."""
    places = np.unique(np.linspace(0, len(frame) - 1, MOST).round().astype(int))
    return frame.sort_values(by).iloc[places] if len(frame) > MOST else frame


def next_cells(fitted: Fit, n: float, d: float, count: int, quantity: str = VERDICT) -> tuple[Cell, ...]:
    """Configurations whose runs narrow a quantity most, greedily; a cell may be named several times.

    Args:
        fitted: the law behind the quantity.
        n: model size from which gains are counted.
        d: transitions from which gains are counted.
        count: how many runs.
        quantity: ``verdict`` (difference of the two gains of a doubling), ``data_gain``, ``model_gain``, or the name of
            a parameter.

    Raises:
        UserError: no such quantity.

    """
    contrast = _contrast(fitted, n, d, quantity)
    if not np.abs(contrast).max() > 0:
        raise UserError(f"{quantity} is the same whatever the numbers of law {fitted.law.name}; nothing narrows it")
    options = candidates(fitted)
    g = _derivative(fitted, options)
    rows = _derivative(fitted, fitted.data.frame)
    information = rows.T @ rows
    information += np.eye(len(contrast)) * 1e-9 * np.trace(information)
    before = contrast @ np.linalg.solve(information, contrast)
    chosen = []
    for _ in range(count):
        inverse = np.linalg.inv(information)
        along, pull = g @ inverse @ contrast, np.einsum("ij,jk,ik->i", g, inverse, g)
        left = contrast @ inverse @ contrast - along**2 / (1 + pull)
        best = int(np.argmin(left))
        information += np.outer(g[best], g[best])
        chosen.append(_cell(options, best, float(left[best] / before)))
    return tuple(chosen)


def _contrast(fitted: Fit, n: float, d: float, quantity: str) -> np.ndarray:
    if quantity in names(fitted.law) or f"log_{quantity}" in names(fitted.law):
        place = [name.removeprefix("log_") for name in names(fitted.law)].index(quantity.removeprefix("log_"))
        return np.eye(len(fitted.theta))[place]
    if quantity not in QUANTITIES:
        known = [*QUANTITIES, *names(fitted.law)]
        raise UserError(f"nothing called {quantity!r} to narrow; known: {', '.join(known)}")
    corners = pd.DataFrame({"N": [n, n, 2 * n], "D": [d, 2 * d, d]})
    for name in fitted.law.inputs:
        if name not in corners:
            corners[name] = float(fitted.data.frame[name].median())
    here, data, model = _derivative(fitted, corners)
    return {VERDICT: data - model, DATA_GAIN: data - here, MODEL_GAIN: model - here}[quantity]


def _derivative(fitted: Fit, frame: pd.DataFrame) -> np.ndarray:
    """D log L / d theta, (row, parameter)."""
    centre = fitted.data.centre
    log_x = {name: np.log(frame[name].to_numpy(float)) - centre[name] for name in fitted.law.inputs}
    surface = fitted.law.bind(log_x, centre, len(frame))
    gradient: np.ndarray = surface.expand(fitted.theta[None]).gradient[0].T
    return gradient


def _cell(options: pd.DataFrame, row: int, variance_left: float) -> Cell:
    record = options.iloc[row]
    told_apart = [name for name in SETTINGS if name in options and options[name].nunique() > 1]
    values = {name: options[name].iloc[row] for name in told_apart}
    values = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
    return Cell(values, float(record["N"]), float(record["D"]), variance_left)


def sweep_yaml(fitted: Fit, cells: tuple[Cell, ...], name: str) -> str:
    """A sweep that runs these cells with seeds and draws that the table does not hold yet.

    Raises:
        UserError: the table does not say what its runs were.

    """
    frame = fitted.data.frame
    if "spec" not in frame or not frame["spec"].notna().all():
        raise UserError("the table holds no specs, so no sweep can be written")
    specs = [upgraded(json.loads(spec)) for spec in frame["spec"]]
    if "dataset" in frame and frame["dataset"].nunique() > 1:
        raise UserError(f"the runs are on {frame['dataset'].nunique()} datasets; keep one with --where")
    by_size = _fields_by_size(specs)
    fresh = itertools.count(int(max(frame["seed"].max(), frame["draw"].max())) + 1)
    told = [field for key in cells[0].settings for field in FIELDS[key] if _varies(specs, field)] + by_size
    points = []
    for cell in cells:
        values = dict(_values(frame, specs, cell, by_size))
        seed = next(fresh)
        points.append([*(values[field] for field in told), seed, seed])
    axis = ", ".join([*told, "data.draw", "seed"])
    left = {part: _left_out(specs[0][part], kind(), part, told) for part, kind in PARTS.items()}
    base = {part: values for part, values in left.items() if values}
    text = {"name": name, "question": "What would narrow the verdict most?", "base": base, "axes": {axis: points}}
    written: str = yaml.safe_dump(text, sort_keys=False, default_flow_style=None, width=110)
    return written


def _values(
    frame: pd.DataFrame, specs: list[dict[str, Any]], cell: Cell, by_size: list[str]
) -> Iterator[tuple[str, Any]]:
    """The fields behind a cell's settings, each as in a run of the table that has the setting."""
    same = [(frame[key] == cell.settings[key]).to_numpy() for key in SIZE if key in cell.settings]
    alike = int(np.argmax(np.all(same, axis=0))) if same else 0
    yield from ((field, field_of(specs[alike], field)) for field in by_size)
    for key, value in cell.settings.items():
        row = int(np.argmax((frame[key] == value).to_numpy()))
        for field in FIELDS[key]:
            yield field, field_of(specs[row], field)


def _varies(specs: list[dict[str, Any]], field: str) -> bool:
    return len({json.dumps(field_of(spec, field)) for spec in specs}) > 1


def _fields_by_size(specs: list[dict[str, Any]]) -> list[str]:
    """Other fields in which runs differ, if each model has one value, as when learning rates were tuned.

    Raises:
        UserError: runs of one model differ in something else.

    """
    known = {"data.draw", *OF_DATASET, *itertools.chain.from_iterable(FIELDS.values())}
    parts = [part for part in PARTS if part != "evaluate"]
    other = [f"{part}.{leaf}" for part in parts for leaf in specs[0][part] if f"{part}.{leaf}" not in known]
    moving = [field for field in other if _varies(specs, field)]
    sizes: dict[str, list[dict[str, Any]]] = {}
    for spec in specs:
        sizes.setdefault(json.dumps([field_of(spec, field) for (field,) in SIZE.values()]), []).append(spec)
    unclear = [field for field in moving if any(_varies(alike, field) for alike in sizes.values())]
    if unclear:
        raise UserError(
            f"the runs also differ in {', '.join(unclear)}, and which value the next ones should take is not known; "
            "keep one with --where"
        )
    return moving


def _left_out(values: dict[str, Any], defaults: Any, part: str, told: list[str]) -> dict[str, Any]:
    """What differs from the defaults and is on no axis."""
    plain = json.loads(json.dumps(dataclasses.asdict(defaults)))
    axes = {*told, "data.draw"}
    return {k: v for k, v in values.items() if v != plain.get(k, v) and f"{part}.{k}" not in axes}
