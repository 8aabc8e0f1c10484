"""How a sweep, one question in one YAML file, unfolds into runs.

    name: width-and-data          # names the table; letters, digits, - and _
    question: one sentence        # optional
    base: {model: {...}, data: {...}, train: {...}, evaluate: {...}, seed: 0}
    axes:                         # the runs are the product of the axes
      model.width: [16, 32]
      data.draw, seed: [[0, 0], [1, 1]]     # fields that move together, as one axis
    skip:                         # cells to leave out
      - {model.width: 32, data.fraction: 1.0}
    tuned: [train.learning_rate]  # axes of which each model keeps the best value; optional

A field takes its value from the axes, else from ``base``, else from the default in :mod:`scaling.spec`.
"""

import dataclasses
import itertools
import math
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling import yaml_values
from scaling.errors import UserError
from scaling.plug import suggestion
from scaling.spec import PARTS, RunSpec
from scaling.yaml_values import Located

TOP = ("name", "question", "base", "axes", "skip", "tuned")


@dataclass(frozen=True)
class Sweep:
    """One question and the runs that answer it."""

    name: str
    question: str
    folder: Path
    """Where the file lies; relative dataset paths start here."""
    runs: tuple[RunSpec, ...]
    named: frozenset[str]
    """Dotted names of the fields that the file sets."""
    tuned: tuple[str, ...] = ()
    """Axes that are there to find each model's best value; see :mod:`scaling.tuning`."""


def read(path: Path) -> Sweep:
    """The sweep in a YAML file.

    Raises:
        UserError: anything the file says that is not understood, with its line and what is known instead.

    """
    top = _keys(yaml_values.read(path), TOP, "a sweep")
    name = top["name"].plain() if "name" in top else path.stem
    if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
        raise UserError(f"{path.name}: name must be made of letters, digits, - and _: {name!r}")
    base = _base(top.get("base", Located({}, path.name)))
    axes = [_axis(key, value) for key, value in _mapping(top.get("axes", Located({}, path.name)), "axes").items()]
    _refuse_repeated_fields(axes, path)
    skips = _skips(top.get("skip", Located([], path.name)))
    cells = [dict(itertools.chain.from_iterable(parts)) for parts in itertools.product(*axes)]
    kept = [cell for cell in cells if not any(_matches({**base, **cell}, skip) for skip in skips)]
    if not kept:
        raise UserError(f"{path.name}: skip leaves no run of {len(cells)}")
    question = top["question"].plain() if "question" in top else ""
    if not isinstance(question, str):
        raise UserError(f"{top['question'].where}: question must be a sentence: {question!r}")
    return Sweep(
        name,
        " ".join(question.split()),
        path.resolve().parent,
        tuple(_run({**base, **cell}, path) for cell in kept),
        frozenset(base).union(*cells),
        _tuned(top, [name for axis in axes for name, _ in axis[0]]),
    )


def _tuned(top: dict[str, Located], moving: list[str]) -> tuple[str, ...]:
    if "tuned" not in top:
        return ()
    names = top["tuned"].plain()
    can = [name for name in moving if name.startswith("train.")]
    if not isinstance(names, list) or not names or any(name not in can for name in names):
        known = ", ".join(can) or "none"
        raise UserError(f"{top['tuned'].where}: tuned must list axes over fields of train, here {known}: {names!r}")
    return tuple(names)


Values = dict[str, Any]
"""Dotted field name to value."""


def fields() -> dict[str, Any]:
    """Every field that a sweep may set, as a dotted name, with its type."""
    dotted = {f"{part}.{f.name}": f.type for part, kind in PARTS.items() for f in dataclasses.fields(kind)}
    return {**dotted, "seed": int}


def _base(located: Located) -> Values:
    values: Values = {}
    for part, content in _keys(located, (*PARTS, "seed"), "base").items():
        if part == "seed":
            values["seed"] = _typed("seed", content)
            continue
        names = [f.name for f in dataclasses.fields(PARTS[part])]
        for name, value in _keys(content, names, f"base.{part}").items():
            values[f"{part}.{name}"] = _typed(f"{part}.{name}", value)
    return values


def _axis(key: str, located: Located) -> list[list[tuple[str, Any]]]:
    """The points of one axis; each sets one field, or several that move together."""
    names = [name.strip() for name in key.split(",")]
    for name in names:
        _known(name, list(fields()), "axis", located.where)
    if not isinstance(located.value, list) or not located.value:
        raise UserError(f"{located.where}: the axis {key} must be a list of values: {located.plain()!r}")
    points = [_point(names, value) for value in located.value]
    for index, point in enumerate(points):
        if point in points[:index]:
            raise UserError(f"{located.where}: the axis {key} lists {located.plain()[index]!r} twice")
    return points


def _point(names: list[str], located: Located) -> list[tuple[str, Any]]:
    if len(names) == 1:
        return [(names[0], _typed(names[0], located))]
    if not isinstance(located.value, list) or len(located.value) != len(names):
        raise UserError(f"{located.where}: expected one value for each of {', '.join(names)}: {located.plain()!r}")
    return [(name, _typed(name, value)) for name, value in zip(names, located.value, strict=True)]


def _skips(located: Located) -> list[Values]:
    if not isinstance(located.value, list):
        raise UserError(f"{located.where}: skip must be a list of cells: {located.plain()!r}")
    return [
        {name: _typed(name, value) for name, value in _keys(cell, list(fields()), "skip").items()}
        for cell in located.value
    ]


def _matches(cell: Values, skip: Values) -> bool:
    return all(cell.get(name, _default(name)) == value for name, value in skip.items())


def _default(name: str) -> Any:
    part, _, leaf = name.rpartition(".")
    value = RunSpec()
    return getattr(getattr(value, part) if part else value, leaf)


def _refuse_repeated_fields(axes: list[list[list[tuple[str, Any]]]], path: Path) -> None:
    names = [name for axis in axes for name, _ in axis[0]]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path.name}: {name} stands in two axes; each field may move along one")


def _run(values: Values, path: Path) -> RunSpec:
    parts: dict[str, Values] = {part: {} for part in PARTS}
    for name, value in values.items():
        part, _, leaf = name.rpartition(".")
        if part:
            parts[part][leaf] = value
    try:
        built = {part: kind(**parts[part]) for part, kind in PARTS.items()}
        return RunSpec(**built, seed=values.get("seed", 0))
    except ValueError as error:
        raise UserError(f"{path.name}: {error}") from error


def _mapping(located: Located, place: str) -> dict[str, Located]:
    if not isinstance(located.value, dict):
        raise UserError(f"{located.where}: {place} must be a mapping of keys to values: {located.plain()!r}")
    return located.value


def _keys(located: Located, known: list[str] | tuple[str, ...], place: str) -> dict[str, Located]:
    mapping = _mapping(located, place)
    for key, value in mapping.items():
        _known(key, list(known), f"key in {place}", value.where)
    return mapping


def _known(name: str, known: list[str], what: str, where: str) -> None:
    if name not in known:
        raise UserError(f"{where}: unknown {what}: {name!r}{suggestion(name, known)}; valid: {', '.join(known)}")


def _typed(name: str, located: Located) -> Any:
    """The value, refused unless it has the field's type; whole numbers serve as floats."""
    wanted, value = fields()[name], located.plain()
    options = typing.get_args(wanted) if typing.get_origin(wanted) in (types.UnionType, typing.Union) else (wanted,)
    choices = [c for option in options if typing.get_origin(option) is typing.Literal for c in typing.get_args(option)]
    if choices:
        if value not in choices and not (value is None and type(None) in options):
            raise UserError(f"{located.where}: {name} must be one of {', '.join(choices)}: {value!r}")
        return value
    if typing.get_origin(wanted) is tuple:
        return _tuple(name, located)
    if float in options and type(value) is int:
        return float(value)
    if type(value) is float and not math.isfinite(value):
        raise UserError(f"{located.where}: {name} must be a finite number: {value}")
    if type(value) not in options:
        hint = " (YAML reads this as text; write it as 1.0e-4 or 1.0e+4)" if _is_number_in_text(value) else ""
        kinds = " or ".join("nothing" if option is type(None) else option.__name__ for option in options)
        raise UserError(f"{located.where}: {name} must be {kinds}, not {type(value).__name__}: {value!r}{hint}")
    return value


def _tuple(name: str, located: Located) -> tuple[Any, ...]:
    """A list of values of one type; a single value stands for a list of one."""
    kind = typing.get_args(fields()[name])[0]
    items = located.value if isinstance(located.value, list) else [located]
    values = tuple(float(v) if kind is float and type(v) is int else v for v in (item.plain() for item in items))
    for value in values:
        if type(value) is not kind or (kind is float and not math.isfinite(value)):
            raise UserError(f"{located.where}: {name} must be a list of {kind.__name__}: {located.plain()!r}")
    return values


def _is_number_in_text(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[+-]?\d+\.?\d*[eE][+-]?\d+", value) is not None
