"""Pictures of the decision: gains, iso-loss contours, profiles of exponents, hold-out errors of the laws."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, StrMethodFormatter

from scaling import results
from scaling.answer import Answer, gains
from scaling.ensemble import Ensemble
from scaling.figures import DATA_COLOUR, MODEL_COLOUR, PALETTE, new_axes
from scaling.intervals import percentile
from scaling.profile import Profile
from scaling.selection import Selection

QUANTILE_95 = 3.84
"""Of chi-square with one degree of freedom."""
SURVIVING, OTHER = "#2a7f62", "#b0b0b0"


def gain_of_doubling(draws: Ensemble, n: float, d: float, axes: Axes | None = None) -> Axes:
    """Distribution over the draws of the gain of doubling the data and of doubling the model."""
    axes = axes or new_axes()
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


def tornado(draws: Ensemble, given: Answer, axes: Axes | None = None) -> Axes:
    """What each choice is expected to give, law by law and averaged, longest bar first, with 95 % intervals."""
    axes = axes or new_axes()
    bars = []
    for member, weight in zip(draws.members, draws.weights, strict=True):
        alone = Ensemble((member,), (1.0,))
        for values, side in zip(gains(alone, given.N, given.D), ("data", "model"), strict=True):
            bars.append((f"twice the {side}\n{member.fit.law.name}, weight {weight:.0%}", values, side))
    if len(draws.members) > 1:
        for values, side in zip(gains(draws, given.N, given.D), ("data", "model"), strict=True):
            bars.append((f"twice the {side}\nall laws", values, side))
    bars.sort(key=lambda bar: float(np.median(bar[1])))
    for place, (_, values, side) in enumerate(bars):
        middle = 100 * float(np.median(values))
        low, high = (100 * float(end) for end in percentile(values))
        axes.barh(place, middle, color=DATA_COLOUR if side == "data" else MODEL_COLOUR, alpha=0.75, height=0.6)
        axes.plot([low, high], [place, place], color="black", linewidth=1.5)
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars], fontsize="small")
    axes.axvline(0, color="grey", linewidth=1)
    axes.set_xlabel("expected reduction of the loss [%]")
    axes.set_title("What one doubling gives, by law")
    return axes


def contours(draws: Ensemble, given: Answer, axes: Axes | None = None) -> Axes:
    """Iso-loss lines in (N, D), the sizes at which both sides help alike, and the configurations that were run."""
    axes = axes or new_axes()
    frame = draws.data.frame
    n = np.geomspace(frame["N"].min() / 2, frame["N"].max() * 3, 60)
    d = np.geomspace(frame["D"].min() / 2, frame["D"].max() * 3, 60)
    grid_n, grid_d = np.meshgrid(n, d)
    loss = draws.estimate(grid_n.ravel(), grid_d.ravel()).reshape(grid_n.shape)
    lines = axes.contour(n, d, loss, levels=12, cmap=PALETTE, linewidths=1)
    axes.clabel(lines, fontsize=7, fmt="%.3g")
    log_loss = np.log(loss)
    by_n, by_d = -np.gradient(log_loss, np.log(n), axis=1), -np.gradient(log_loss, np.log(d), axis=0)
    axes.contour(n, d, by_n - by_d, levels=[0.0], colors="black", linestyles="--", linewidths=1.2)
    axes.plot(frame["N"], frame["D"], "o", color="black", markersize=3.5, label="configurations that were run")
    axes.plot([], [], "--", color="black", label="one doubling of either helps alike")
    axes.plot(given.N, given.D, "*", color=MODEL_COLOUR, markersize=12, label="gains are counted from here")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(results.label("N"))
    axes.set_ylabel(results.label("D"))
    axes.set_title("Lines of equal loss")
    axes.legend(fontsize="x-small", loc="lower right", frameon=True, framealpha=0.9)
    return axes


def profiles(found: list[Profile], axes: Axes | None = None) -> Axes:
    """Deviance along each exponent, all else refitted: a narrow valley is an exponent that the data determine."""
    axes = axes or new_axes()
    for one, colour in zip(found, (MODEL_COLOUR, DATA_COLOUR, SURVIVING, OTHER, "#8c6bb1", "#d9a441"), strict=False):
        finite = np.isfinite(one.objective)
        axes.plot(one.value[finite], one.deviance[finite], color=colour, label=one.name)
    axes.axhline(QUANTILE_95, color="grey", linestyle=":", linewidth=1)
    axes.annotate(
        "95%, if rows were independent",
        (0.99, QUANTILE_95),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        fontsize="x-small",
    )
    axes.set_ylim(-0.5, 15)
    axes.set_xlabel("exponent")
    axes.set_ylabel("profile deviance")
    axes.set_title("How sharply the exponents are determined")
    axes.legend(fontsize="small")
    return axes


def hold_out_errors(found: Selection, axes: Axes | None = None) -> Axes:
    """Error of every law on every hold-out; laws that survive in colour."""
    axes = axes or new_axes()
    for place, candidate in enumerate(reversed(found.candidates)):
        errors = [100 * candidate.rmse(hold) for hold in found.holds]
        colour = SURVIVING if candidate.survives else OTHER
        axes.plot(errors, [place] * len(errors), "o", color=colour, alpha=0.7, markersize=5)
        axes.plot([np.sqrt(np.mean(np.square(errors)))], [place], "D", color=colour, markersize=8)
    axes.set_yticks(range(len(found.candidates)), [c.fit.law.name for c in reversed(found.candidates)])
    axes.set_xscale("log")
    for set_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        set_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    axes.set_xlabel("error on rows held out [% of the loss]")
    axes.set_title("Extrapolation: dots are hold-outs, diamonds all; green laws survive")
    return axes
