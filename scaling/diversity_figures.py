"""Loss against how varied the training subset was, at equal numbers of transitions."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from scaling import results
from scaling.figures import style


def loss_against(frame: pd.DataFrame, measure: str, size: str, kind: str, form: str) -> Figure:
    """A panel per size of the subset; a dot per run.

    Args:
        frame: runs with ``loss_best`` and the columns named below.
        measure: how varied a subset was.
        size: column of its size, one panel each.
        kind: column of how it was chosen, a colour each.
        form: column that gives a marker each.

    """
    sizes = sorted(frame[size].unique())
    with style():
        figure = Figure(figsize=(4.2 * len(sizes) + 1.8, 3.8), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, len(sizes), sharey=True))
        for axes, value in zip(panels, sizes, strict=True):
            rows = frame[frame[size] == value]
            last = axes is panels[-1]
            sns.scatterplot(rows, x=measure, y="loss_best", hue=kind, style=form, s=70, ax=axes, legend=last)
            axes.set(xlabel=results.label(measure), ylabel=results.label("loss_best"), title=f"{size} = {value:,.0f}")
        panels[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    return figure
