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
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from scaling import results
from scaling.answer import DOUBLING, gains
from scaling.fit import Fit
from scaling.intervals import Bootstrap, percentile

PALETTE = "viridis"
DATA_COLOUR, MODEL_COLOUR = "#1b6ca8", "#c8553d"


@contextmanager
def style() -> Iterator[None]:
    """The project's look, without touching the caller's settings."""
    with mpl.rc_context(), sns.axes_style("whitegrid"), sns.plotting_context("notebook", font_scale=0.9):
        mpl.rcParams.update({"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False})
        mpl.rcParams.update({"legend.frameon": False, "grid.alpha": 0.5})
        yield


def loss_against(fitted: Fit, along: str, loss: str, axes: Axes | None = None) -> Axes:
    """Every run's loss against one input, a colour per level of the other, with the fitted law through them."""
    other = "N" if along == "D" else "D"
    axes = axes or _axes()
    frame = fitted.data.frame
    level = _levels(frame, other)
    colours = sns.color_palette(PALETTE, len(level.unique()))
    smooth = np.geomspace(frame[along].min(), frame[along].max(), 100)
    for colour, (value, rows) in zip(colours, frame.groupby(level, sort=True), strict=True):
        axes.plot(rows[along], rows[loss], "o", color=colour, alpha=0.75, markersize=5, label=f"{value:,.0f}")
        axes.plot(smooth, _curve(fitted, along, smooth, other, float(value)), color=colour, linewidth=1.5)
    _log_axes(axes, along, loss)
    axes.legend(title=results.label(other), fontsize="small", title_fontsize="small")
    axes.set_title(f"Loss against {along}; lines: {fitted.law.equation}")
    return axes


def law_with_band(draws: Bootstrap, along: str, loss: str, axes: Axes | None = None) -> Axes:
    """The fitted law at the largest level of the other input, with its band, to one doubling beyond the data."""
    other = "N" if along == "D" else "D"
    axes = axes or _axes()
    frame = draws.fit.data.frame
    colour = DATA_COLOUR if along == "D" else MODEL_COLOUR
    level = _levels(frame, other)
    top = frame[level == level.max()]
    largest = float(frame[along].max())
    smooth = np.geomspace(frame[along].min(), largest * DOUBLING, 120)
    inputs = {along: smooth, other: np.full(len(smooth), float(level.max()))}
    low, high = percentile(draws.predict(inputs))
    axes.fill_between(smooth, low, high, color=colour, alpha=0.2, linewidth=0, label="95% interval of the mean")
    axes.plot(smooth, draws.fit.predict(inputs), color=colour, label=draws.fit.law.equation)
    axes.plot(top[along], top[loss], "o", color="black", markersize=4, label="runs")
    axes.axvline(largest, color="grey", linestyle=":", linewidth=1)
    axes.annotate(
        "observed ", (largest, 0.98), xycoords=("data", "axes fraction"), ha="right", va="top", fontsize="small"
    )
    _log_axes(axes, along, loss)
    axes.set_title(f"The law at {other} = {level.max():,.0f}")
    axes.legend(fontsize="small")
    return axes


def gain_of_doubling(draws: Bootstrap, n: float, d: float, axes: Axes | None = None) -> Axes:
    """Bootstrap distribution of the gain of doubling the data and of doubling the model."""
    axes = axes or _axes()
    by_data, by_model = (100 * values for values in gains(draws, n, d))
    together = np.concatenate([by_data, by_model])
    low, high = np.quantile(together, [0.002, 0.998])
    bins = np.linspace(low, high if high > low else low + 1, 45)
    for values, colour, name in ((by_data, DATA_COLOUR, "data"), (by_model, MODEL_COLOUR, "model")):
        axes.hist(values, bins=bins.tolist(), color=colour, alpha=0.55, label=f"twice the {name}")
        axes.axvline(float(np.median(values)), color=colour, linewidth=1.5)
    axes.set_xlabel("expected reduction of the loss [%]")
    axes.set_ylabel("bootstrap refits")
    axes.set_title(f"Gain of one doubling from N = {n:,.0f}, D = {d:,.0f}")
    axes.legend(fontsize="small")
    return axes


def residuals(fitted: Fit, axes: Axes | None = None) -> Axes:
    """Relative residual of every run against its predicted loss."""
    axes = axes or _axes()
    frame = fitted.data.frame
    predicted = fitted.predict({name: frame[name].to_numpy(float) for name in fitted.law.inputs})
    error = 100 * (np.exp(fitted.data.log_loss) / predicted - 1)
    sns.scatterplot(x=predicted, y=error, hue=np.log10(frame["D"]).round(2), palette=PALETTE, ax=axes, legend=False)
    axes.axhline(0, color="grey", linewidth=1)
    axes.set_xlabel("predicted loss")
    axes.set_ylabel("loss above prediction [%]")
    axes.set_title("Residuals; lighter means more data")
    return axes


def training_curves(frame: pd.DataFrame, axes: Axes | None = None) -> Axes:
    """Held-out loss along training, a line per run, coloured by the size of its subset."""
    axes = axes or _axes()
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
    axes = axes or _axes()
    colours = np.log10(frame["D"])
    axes.scatter(frame[loss], frame["score"], c=colours, cmap=PALETTE, s=24)
    axes.set_xlabel(results.label(loss))
    axes.set_ylabel(results.label("score"))
    axes.set_title("Score against loss; lighter means more data")
    return axes


def _axes() -> Axes:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes: Axes = figure.add_subplot()
    return axes


def _levels(frame: pd.DataFrame, name: str) -> pd.Series:
    """Level of each row: D varies a little between draws of one fraction, which count as one level."""
    if name == "D" and "fraction" in frame:
        return frame.groupby("fraction")["D"].transform("mean").round()
    return frame[name].astype(float)


def _curve(fitted: Fit, along: str, smooth: np.ndarray, other: str, value: float) -> np.ndarray:
    return fitted.predict({along: smooth, other: np.full(len(smooth), value)})


def _log_axes(axes: Axes, along: str, loss: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain(axes.yaxis)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel(results.label(along))
    axes.set_ylabel(results.label(loss))


def _plain(axis: mpl.axis.Axis) -> None:
    """Plain numbers on a logarithmic axis that spans less than a decade."""
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
