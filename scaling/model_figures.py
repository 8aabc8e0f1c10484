"""Pictures about models: how far back they remember, and how they compare."""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from scipy import stats

from scaling.figures import new_axes
from scaling.results import label

CHANCE = 0.5
"""Success in a T-maze of a network that has forgotten the clue."""
DODGE = 0.12
"""How far models are spread along the axis, relative, so that equal ones are seen beside each other."""


def success(table: pd.DataFrame, axes: Axes | None = None, *, chance: float | None = CHANCE) -> Axes:
    """Success against the horizon in tokens: a line per model and whatever else tells its runs apart, a dot per run.

    ``table`` is a results table of runs on memory tasks with the column ``data.horizon``, and ``model.dt_init`` and
    ``model.branches`` where these shall be told apart; ``chance`` is the success of who has forgotten.
    """
    axes = axes or new_axes()
    frame = table.assign(tokens=3 * table["data.horizon"], model=_called(table))
    ticks = sorted(frame["tokens"].unique())
    place = pd.factorize(frame["model"])[0]
    frame["tokens"] = frame["tokens"] * (1 + DODGE * (place / max(1, place.max()) - 0.5))
    shared: dict[str, Any] = {"data": frame, "x": "tokens", "y": "return_mean", "hue": "model", "style": "model"}
    sns.lineplot(**shared, palette="colorblind", errorbar=None, linewidth=2, ax=axes)
    sns.scatterplot(**shared, palette="colorblind", s=36, legend=False, ax=axes)
    if chance is not None:
        axes.axhline(chance, color="grey", linewidth=1, linestyle=":")
        right = axes.get_yaxis_transform()
        axes.text(1.01, chance, "chance", color="grey", ha="left", va="center", transform=right)
    axes.set(xscale="log", xlabel="horizon [tokens]", ylabel="success", ylim=(-0.03, 1.06))
    axes.set_xticks(ticks, labels=list(map(str, ticks)))
    axes.minorticks_off()
    axes.legend(title=None, fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return axes


def _called(table: pd.DataFrame) -> pd.Series:
    """The kind, and the branches and the initialisation of step sizes where runs of the kind differ in them."""
    called = table["kind"]
    for field in ("model.branches", "model.dt_init"):
        if field in table:
            differ = table.groupby("kind")[field].transform("nunique") > 1
            called = called.where(~differ, called + ", " + table[field].str.replace("_", " "))
    return called


def step_sizes(memory: pd.DataFrame, axes: Axes | None = None) -> Axes:
    """Distribution over channels of the mean step size on data, one curve per network and branch.

    ``memory`` is a table of :func:`scaling.memory.memory` with a column ``network``; so it is in the next two.
    """
    axes = axes or new_axes()
    frame = memory[memory["state"] == 0].assign(curve=_curve)
    sns.ecdfplot(data=frame, x="dt_mean", hue="curve", log_scale=True, palette="colorblind", ax=axes)
    axes.set(xlabel="mean step size of a channel", ylabel="share of channels")
    sns.move_legend(axes, "best", title=None)
    return axes


def horizons(memory: pd.DataFrame, axes: Axes | None = None) -> Axes:
    """Share of channels whose slowest state remembers at least as long, one curve per network and branch."""
    axes = axes or new_axes()
    keys = ["network", "branch", "block", "channel"]
    longest = memory.groupby(keys, as_index=False).agg(horizon=("horizon", "max"), reset=("reset", "first"))
    curves: dict[str, Any] = {
        "data": longest.assign(curve=_curve),
        "x": "horizon",
        "hue": "curve",
        "palette": "colorblind",
    }
    sns.ecdfplot(**curves, log_scale=True, complementary=True, ax=axes)
    for reset in sorted(longest["reset"].unique()):
        axes.axvline(reset, color="grey", linewidth=1, linestyle=":")
        said = f"{reset} timesteps"
        axes.annotate(said, (reset, 0.02), xytext=(3, 0), textcoords="offset points", color="grey", rotation=90)
    axes.set(xlabel="memory horizon [timesteps]", ylabel="share of channels beyond")
    sns.move_legend(axes, "best", title=None)
    return axes


def eigenvalues(memory: pd.DataFrame, axes: Axes | None = None) -> Axes:
    """Entries of A by their place, median and 90 % of the channels, one curve per network and branch."""
    axes = axes or new_axes()
    frame = memory.assign(curve=_curve, place=memory["state"] + 1)
    curves: dict[str, Any] = {"data": frame, "x": "place", "y": "eigenvalue", "hue": "curve", "palette": "colorblind"}
    sns.lineplot(**curves, estimator="median", errorbar=("pi", 90), ax=axes)
    places = np.arange(1, frame["place"].max() + 1)
    axes.plot(places, -places, color="black", linewidth=1, linestyle="--", label="S4D-real")
    axes.set(xlabel="state", ylabel="eigenvalue of A")
    axes.legend(title=None, fontsize="small")
    return axes


def _curve(frame: pd.DataFrame) -> pd.Series:
    return frame["network"] + ", " + frame["branch"]


def comparison(table: pd.DataFrame, column: str, axes: Axes | None = None) -> Axes:
    """One column of a results table by model: the runs as dots, their mean with a 95 % t interval."""
    axes = axes or new_axes()
    groups = table.groupby("kind", sort=False)[column]
    sns.stripplot(data=table, x=column, y="kind", hue="kind", palette="colorblind", jitter=0.08, alpha=0.6, ax=axes)
    for row, (_, values) in enumerate(groups):
        low, high = mean_interval(values)
        axes.plot([low, high], [row, row], color="black", linewidth=2, zorder=5)
        axes.plot(values.mean(), row, "|", color="black", markersize=14, zorder=6)
    axes.set(xlabel=label(column), ylabel="")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    return axes


def mean_interval(values: pd.Series, level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean, which takes runs as independent and normal; not a number for one run."""
    if len(values) < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf(0.5 + level / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)
