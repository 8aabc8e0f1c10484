"""Pictures of returns: profiles of configurations, their means against size or data, loss against return."""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from scaling import results, robust
from scaling.comparison import Comparison, Row
from scaling.figures import MODEL_COLOUR, PALETTE, new_axes, style
from scaling.link import Link
from scaling.outcomes import Outcomes

MOST_PROFILES, MOST_NAMES = 6, 16
"""Configurations drawn in a profile, and by name; of more, those spread evenly from the lowest to the highest."""
WIDE = 30
"""Characters of a name from which on a legend has one column."""
MANY_DECADES = 3
THRESHOLDS, PROFILE_DRAWS = 401, 500


def profiles(given: Outcomes, found: Comparison, generator: np.random.Generator, axes: Axes | None = None) -> Axes:
    """Share of runs, or episodes, above each value, a line with a 95 % band per configuration."""
    axes = axes or new_axes()
    rows = _spread(found, MOST_PROFILES)
    values = given.runs["value"] if found.unit == "run" else given.played["value"]
    margin = 0.03 * (float(np.ptp(values)) or 1.0)
    thresholds = np.linspace(values.min() - margin, values.max() + margin, THRESHOLDS)
    for row, colour in zip(rows, sns.color_palette(PALETTE, len(rows)), strict=True):
        matrix = given.by_task(row.name, found.unit)
        shape = robust.bootstrap(
            lambda scores: robust.profile(scores, thresholds), matrix, generator=generator, draws=PROFILE_DRAWS
        )
        axes.fill_between(thresholds, shape.low, shape.high, step="post", color=colour, alpha=0.15, linewidth=0)
        axes.plot(thresholds, shape.value, drawstyle="steps-post", color=colour, linewidth=1.6, label=row.name)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(given.label)
    axes.set_ylabel(f"share of {found.unit}s above")
    axes.set_title(f"Performance profiles{_of(rows, found)}")
    columns = 1 if max(len(row.name) for row in rows) > WIDE else 2
    axes.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=columns)
    return axes


def mean_against(given: Outcomes, found: Comparison, axes: Axes | None = None) -> Axes:
    """Interquartile mean with its interval against N, or against D where N hardly varies."""
    axes = axes or new_axes()
    along, other = _along(given.runs)
    if along is None:
        return _mean_by_name(given, found, axes)
    place = given.runs.groupby("configuration")[[name for name in (along, other) if name]].mean()
    if other == "D" and "fraction" in given.runs:
        place["D"] = given.runs.groupby("configuration")["fraction"].mean()
    where = {str(name): float(x) for name, x in place[along].items()}
    levels = place[other].round(6) if other else pd.Series(0.0, place.index)
    found_levels = sorted(levels.unique())
    colours = dict(zip(found_levels, sns.color_palette(PALETTE, len(found_levels)), strict=True))
    for index, level in enumerate(found_levels):
        rows = [row for row in found.rows if levels[row.name] == level]
        rows.sort(key=lambda row: where[row.name])
        nudge = 1.02 ** (index - (len(found_levels) - 1) / 2)  # so that intervals do not hide each other
        x = np.array([where[row.name] for row in rows]) * nudge
        name = f"{level:,.4g}" if other else None
        colour = colours[level]
        axes.errorbar(x, *_bars(rows), fmt="o-", markersize=4, linewidth=1.2, capsize=2, color=colour, label=name)
    _log_x(axes, along)
    axes.set_ylabel(f"interquartile mean of {given.label}")
    axes.set_title(f"Return against {along}")
    if other:
        title = "fraction" if other == "D" and "fraction" in given.runs else results.label(other)
        axes.legend(title=title, fontsize="x-small", title_fontsize="x-small")
    return axes


def return_against_loss(given: Outcomes, loss: str, found: Link | None, axes: Axes | None = None) -> Axes:
    """Every run's return against its loss, with error bars of both, and the fitted link with its band."""
    axes = axes or new_axes()
    x, y = given.runs[loss].to_numpy(float), given.runs["value"].to_numpy(float)
    errors: dict[str, Any] = {"fmt": "o", "color": "0.25", "ecolor": "0.7", "markersize": 4, "elinewidth": 0.8}
    if found is None:
        axes.errorbar(x, y, **errors)
    else:
        spread = found.points.x_error
        sides = np.array([x * -np.expm1(-spread), x * np.expm1(spread)])
        axes.errorbar(x, y, yerr=found.points.y_error, xerr=sides if spread else None, **errors)
        smooth = np.geomspace(x.min(), x.max(), 150)
        axes.set_ylim(axes.get_ylim())  # a band may leave all returns behind
        if len(found.refits):
            axes.fill_between(smooth, *found.band(smooth), color=MODEL_COLOUR, alpha=0.2, linewidth=0, label="95%")
        name = "fitted link" if found.over_flat > 0 else "fitted link, no better than a level line"
        axes.plot(smooth, found.predict(smooth), color=MODEL_COLOUR, label=name)
        axes.legend(fontsize="small")
    _log_x(axes, loss)
    axes.set_ylabel(given.label)
    axes.set_title("Return against loss, a point per run")
    return axes


def page(
    given: Outcomes, compared: Comparison, loss: str, found: Link | None, generator: np.random.Generator
) -> Figure:
    """The three pictures side by side."""
    with style():
        figure = Figure(figsize=(16.5, 5.6), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        profiles(given, compared, generator, left)
        mean_against(given, compared, middle)
        return_against_loss(given, loss, found, right)
    return figure


def _mean_by_name(given: Outcomes, found: Comparison, axes: Axes) -> Axes:
    """The same for configurations that differ in neither, from the lowest up."""
    rows = _spread(found, MOST_NAMES)
    middle, sides = _bars(rows)
    axes.errorbar(middle, np.arange(len(rows)), xerr=sides, fmt="o", color="0.25", capsize=2)
    axes.set_yticks(np.arange(len(rows)), [row.name for row in rows], fontsize="x-small")
    axes.set_xlabel(f"interquartile mean of {given.label}")
    axes.set_title(f"Return by configuration{_of(rows, found)}")
    return axes


def _spread(found: Comparison, most: int) -> list[Row]:
    """Configurations from the lowest to the highest, evenly thinned."""
    rows = sorted(found.rows, key=lambda row: float(row.iqm.value))
    return [rows[place] for place in np.unique(np.linspace(0, len(rows) - 1, most).round().astype(int))]


def _of(rows: list[Row], found: Comparison) -> str:
    return f", {len(rows)} of {len(found.rows)}" if len(rows) < len(found.rows) else ""


def _along(runs: pd.DataFrame) -> tuple[str | None, str | None]:
    """The input to draw along, and the one that gives colours; nothing where it stands still."""
    by_configuration = [
        name for name in ("N", "D") if name in runs and runs.groupby("configuration")[name].mean().nunique() > 1
    ]
    kinds = "kind" in runs and runs["kind"].nunique() > 1
    if kinds or not by_configuration:
        return None, None
    return by_configuration[0], by_configuration[1] if len(by_configuration) > 1 else None


def _bars(rows: list[Row]) -> tuple[np.ndarray, np.ndarray]:
    """(row,) interquartile means and (side, row) lengths of their error bars."""
    value, low, high = (np.array([getattr(row.iqm, part) for row in rows], float) for part in ("value", "low", "high"))
    return value, np.maximum([value - low, high - value], 0)


def _log_x(axes: Axes, along: str) -> None:
    """A logarithmic axis with plain numbers, labelled from the schema."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    decades = np.log10(high / low)
    many = LogLocator(numticks=6) if decades > MANY_DECADES else LogLocator(subs=(1.0, 3.0))
    axes.xaxis.set_major_locator(many if decades > 1 else MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 100 else f"{x:.3g}"))
    axes.set_xlabel(results.label(along))
