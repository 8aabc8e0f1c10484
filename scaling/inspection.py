"""What a dataset is, in numbers and in one figure."""

from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scaling.diversity import CELLS, DIRECTIONS, diversity, projection
from scaling.figures import DATA_COLOUR, style
from scaling.spec import ModelSpec, RunSpec
from scaling.store import Store
from scaling.windows import Windows

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
MOST = 5_000
"""Points of a scatter plot at most."""
NAMED = 10
"""Policies at most that get a colour each."""


def facts(store: Store) -> dict[str, Any]:
    """The numbers, by name."""
    space, lengths, returns = store.space, store.lengths, store.returns
    spread = diversity(Windows(store, np.arange(len(lengths)), RunSpec(model=ModelSpec(context=1))), store)
    told = {
        "transitions": len(store.rewards),
        "episodes": len(lengths),
        "states": f"pictures {space.state} x {space.state}" if space.image else f"{space.state} components",
        "actions": f"{space.action} choices" if space.discrete else f"{space.action} components",
        "returns": _five(returns),
        "return, mean and deviation": f"{returns.mean():,.2f} and {returns.std():,.2f}",
        "lengths": _five(lengths),
        "ended by the environment": f"{np.count_nonzero(store.terminal):,}",
        "cut by a limit": f"{np.count_nonzero(~store.terminal):,}",
        "cells of state and action visited": f"{spread['coverage']:.1%} of {CELLS:,}, along {DIRECTIONS} random lines",
        "entropy of states and actions": "-" if spread["entropy"] is None else f"{spread['entropy']:.2f} nats",
        "digest": store.digest,
    }
    if store.policies is not None:
        told["episodes per policy"] = ", ".join(f"{n:,}" for n in np.bincount(store.policies))
    return told | {name.replace("_", " "): value for name, value in store.about.items() if value is not None}


def _five(values: np.ndarray) -> str:
    return " / ".join(f"{value:,.6g}" for value in np.quantile(values, QUANTILES)) + "  (quantiles 0, 1/4, 1/2, 3/4, 1)"


def picture(store: Store, name: str) -> Figure:
    """Returns, lengths, returns in the order of recording, and where states and actions lie."""
    with style():
        figure = Figure(figsize=(11, 7), layout="constrained")
        axes = figure.subplots(2, 2)
        ended = np.where(store.terminal, "by the environment", "by a limit")
        hue = {"hue": ended, "hue_order": sorted(set(ended), reverse=True), "multiple": "stack"}
        for place, values, label in ((axes[0, 0], store.returns, "return"), (axes[0, 1], store.lengths, "length")):
            sns.histplot(x=np.asarray(values), bins=40, ax=place, legend=place is axes[0, 0], **hue)
            place.set(xlabel=f"{label} of an episode", ylabel="episodes")
            place.yaxis.set_major_locator(MaxNLocator(integer=True))
            place.xaxis.set_major_locator(MaxNLocator(6, integer=label == "length"))
            place.ticklabel_format(axis="x", useOffset=False)
            if np.ptp(values) == 0:
                place.set_xlim(float(values[0]) - 1, float(values[0]) + 1)
        axes[0, 0].get_legend().set_title("ended")
        _along_time(axes[1, 0], store)
        points = projection(store, MOST)
        axes[1, 1].hexbin(points[:, 0], points[:, 1], gridsize=45, bins="log", cmap="viridis", mincnt=1)
        axes[1, 1].set(xlabel="states and actions along a random direction", ylabel="along another")
        figure.suptitle(f"{name}: {len(store.rewards):,} transitions, {len(store.lengths):,} episodes")
    return figure


def _along_time(axes: Any, store: Store) -> None:
    count = len(store.lengths)
    shown = np.unique(np.linspace(0, count - 1, min(count, MOST)).astype(int))
    labels = np.zeros(0) if store.policies is None else store.policies[shown]
    if 0 < len(set(labels.tolist())) <= NAMED:
        for one in sorted(set(labels.tolist())):
            axes.scatter(shown[labels == one], store.returns[shown][labels == one], s=6, alpha=0.5, label=one)
        axes.legend(title="policy", markerscale=2)
    else:
        axes.scatter(shown, store.returns[shown], s=6, alpha=0.5, color=DATA_COLOUR)
    axes.set(xlabel="episode, as recorded", ylabel="return")
