"""Pictures of a table and its fit, one function each, drawn on axes that are passed in or made."""

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from scaling import results
from scaling.answer import DOUBLING
from scaling.ensemble import Ensemble
from scaling.fit import Fit
from scaling.intervals import percentile

PALETTE = "viridis"
DATA_COLOUR, MODEL_COLOUR = "#1b6ca8", "#c8553d"
CROWDED = 500
"""Rows from which on no free place is sought for a legend, which takes long."""
MOST_CURVES = 8
"""Levels that are named in a legend and drawn as a curve."""


@contextmanager
def style() -> Iterator[None]:
    """The project's look, without touching the caller's settings."""
    with mpl.rc_context(), sns.axes_style("whitegrid"), sns.plotting_context("notebook", font_scale=0.9):
        mpl.rcParams.update({"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False})
        mpl.rcParams.update({"legend.frameon": False, "grid.alpha": 0.5})
        yield


def loss_against(draws: Ensemble, along: str, loss: str, axes: Axes | None = None) -> Axes:
    """Every run's loss against one input, a colour per level of the other, with the fitted laws through them."""
    other = "N" if along == "D" else "D"
    axes = axes or new_axes()
    frame = draws.data.frame
    level = _levels(frame, other)
    values = np.sort(level.unique())
    shown = values[np.unique(np.linspace(0, len(values) - 1, MOST_CURVES).round().astype(int))]
    colours = dict(zip(values, sns.color_palette(PALETTE, len(values)), strict=True))
    smooth = np.geomspace(frame[along].min(), frame[along].max(), 100)
    places = np.searchsorted(values, level.to_numpy())
    axes.scatter(frame[along], frame[loss], c=np.array(list(colours.values()))[places], alpha=0.75, s=24)
    for value in shown:
        named = {"color": colours[value], "label": f"{value:,.0f}", "linewidth": 1.5}
        axes.plot(smooth, draws.estimate(*_point(along, smooth, float(value))), **named)
    log_axes(axes, along, loss)
    place = 0 if len(frame) < CROWDED else 1  # best, or upper right
    axes.legend(title=results.label(other), fontsize="small", title_fontsize="small", loc=place)
    axes.set_title(f"Loss against {along}; lines: {', '.join(fit.law.name for fit in draws.fits)}")
    return axes


def law_with_band(draws: Ensemble, along: str, loss: str, axes: Axes | None = None) -> Axes:
    """The laws at the largest level of the other input, to one doubling beyond the data, with two bands.

    The inner band is the interval of the mean, the outer one the prediction interval of a single new run.
    """
    other = "N" if along == "D" else "D"
    axes = axes or new_axes()
    frame = draws.data.frame
    colour = DATA_COLOUR if along == "D" else MODEL_COLOUR
    level = _levels(frame, other)
    top = frame[level == level.max()]
    largest = float(frame[along].max())
    smooth = np.geomspace(frame[along].min(), largest * DOUBLING, 120)
    point = _point(along, smooth, float(level.max()))
    mean = draws.loss(*point)
    residual = draws.lead.fit.residuals
    run = mean * np.exp(np.random.default_rng(0).choice(residual, mean.shape))
    for values, alpha, name in ((run, 0.12, "95% of single new runs"), (mean, 0.3, "95% interval of the mean")):
        axes.fill_between(smooth, *percentile(values), color=colour, alpha=alpha, linewidth=0, label=name)
    axes.plot(smooth, draws.estimate(*point), color=colour, label=", ".join(fit.law.name for fit in draws.fits))
    axes.plot(top[along], top[loss], "o", color="black", markersize=4, label="runs")
    axes.axvline(largest, color="grey", linestyle=":", linewidth=1)
    axes.annotate(
        "observed ", (largest, 0.98), xycoords=("data", "axes fraction"), ha="right", va="top", fontsize="small"
    )
    log_axes(axes, along, loss)
    axes.set_title(f"The law at {other} = {level.max():,.0f}")
    axes.legend(fontsize="small")
    return axes


def residuals(fitted: Fit, axes: Axes | None = None) -> Axes:
    """Relative residual of every run against its predicted loss."""
    axes = axes or new_axes()
    data = fitted.data
    error = 100 * np.expm1(fitted.residuals)
    predicted = np.exp(data.log_loss - fitted.residuals)
    shade = data.log_x["D"] if "D" in data.log_x else np.zeros(data.rows)
    axes.scatter(predicted, error, c=shade, cmap=PALETTE, s=24)
    axes.axhline(0, color="grey", linewidth=1)
    axes.set_xlabel(f"predicted {data.loss}")
    axes.set_ylabel("loss above prediction [%]")
    axes.set_title(f"Residuals of {fitted.law.name}; lighter means more data")
    return axes


def training_curves(frame: pd.DataFrame, axes: Axes | None = None) -> Axes:
    """Held-out loss along training, a line per run, coloured by the size of its subset."""
    axes = axes or new_axes()
    level = _levels(frame, "D")
    values = sorted(level.unique())
    colours = dict(zip(values, sns.color_palette(PALETTE, len(values)), strict=True))
    for (_, row), value in zip(frame.iterrows(), level, strict=True):
        curve = row["curve"]
        axes.plot(
            [p["update"] for p in curve], [p["loss"] for p in curve], color=colours[value], alpha=0.6, linewidth=1
        )
    handles = [Line2D([], [], color=colours[value], label=f"{value:,.0f}") for value in values]
    axes.legend(handles=handles, title=results.label("D"), fontsize="small", title_fontsize="small")
    axes.set_yscale("log")
    _plain(axes.yaxis)
    axes.set_xlabel("updates")
    axes.set_ylabel("held-out loss")
    axes.set_title("Training curves")
    return axes


def score_against_loss(frame: pd.DataFrame, loss: str, axes: Axes | None = None) -> Axes:
    """Normalised score of every run against its held-out loss: whether the loss says anything about returns."""
    axes = axes or new_axes()
    colours = np.log10(frame["D"])
    axes.scatter(frame[loss], frame["score"], c=colours, cmap=PALETTE, s=24)
    axes.set_xlabel(results.label(loss))
    axes.set_ylabel(results.label("score"))
    axes.set_title("Score against loss; lighter means more data")
    return axes


def new_axes() -> Axes:
    """Axes of a figure of their own, outside pyplot."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes: Axes = figure.add_subplot()
    return axes


def _levels(frame: pd.DataFrame, name: str) -> pd.Series:
    """Level of each row: D varies a little between draws of one fraction, which count as one level."""
    if name == "D" and "fraction" in frame and frame["fraction"].notna().all():
        return frame.groupby("fraction")["D"].transform("mean").round()
    return frame[name].astype(float)


def _point(along: str, smooth: np.ndarray, value: float) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) along one input with the other held."""
    held = np.full(len(smooth), value)
    return (smooth, held) if along == "N" else (held, smooth)


def log_axes(axes: Axes, along: str, loss: str) -> None:
    """Logarithmic axes with plain numbers, labelled from the schema."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain(axes.yaxis)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x < 1e6 else f"{x:.0e}"))
    axes.set_xlabel(results.label(along))
    axes.set_ylabel(results.label(loss))


def _plain(axis: mpl.axis.Axis) -> None:
    """Plain numbers on a logarithmic axis that spans less than a decade."""
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
