"""Configurations side by side: robust statistics of each, and each against a baseline."""

from dataclasses import dataclass

import numpy as np

from scaling import robust
from scaling.errors import UserError
from scaling.outcomes import EPISODE, RUN, Outcomes
from scaling.paired import difference
from scaling.robust import DRAWS, Estimate

FEW = 5
"""Runs of a configuration below which its percentile interval is too narrow."""


@dataclass(frozen=True, eq=False)
class Row:
    """One configuration."""

    name: str
    runs: int
    episodes: int
    mean: Estimate
    iqm: Estimate
    above: Estimate | None
    """Probability that one of its runs, or episodes, returns more than one of the baseline's."""
    gain: Estimate | None
    """Mean less the baseline's, over the starts that both met."""
    starts: int
    """How many these are."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """All configurations."""

    rows: tuple[Row, ...]
    baseline: str
    best: str
    """The one with the highest interquartile mean."""
    unit: str
    """What is resampled: run or episode."""
    notes: tuple[str, ...]


def compare(
    given: Outcomes, generator: np.random.Generator, draws: int = DRAWS, baseline: str | None = None
) -> Comparison:
    """Every configuration's statistics with intervals, and its comparison to the baseline.

    Args:
        given: what the runs returned.
        generator: where the draws come from.
        draws: number of resamples.
        baseline: name of a configuration; by default the one with the lowest interquartile mean.

    Raises:
        UserError: no such configuration, or environments that were played unequally often.

    """
    names = given.configurations
    if baseline is not None and baseline not in names:
        raise UserError(f"no configuration {baseline!r}; there are: {'; '.join(names)}")
    runs = {name: int((given.runs["configuration"] == name).sum()) for name in names}
    unit = RUN if min(runs.values()) > 1 else EPISODE
    scores = {name: given.by_task(name, unit) for name in names}
    middle = {name: float(robust.interquartile_mean(matrix)) for name, matrix in scores.items()}
    base = baseline or min(names, key=lambda name: middle[name])
    rows = tuple(_row(given, name, base, scores, generator, draws) for name in names)
    best = max(names, key=lambda name: middle[name])
    return Comparison(rows, base, best, unit, _notes(runs, unit, rows, base, baseline is None))


def _row(
    given: Outcomes, name: str, base: str, scores: dict[str, np.ndarray], generator: np.random.Generator, draws: int
) -> Row:
    mean = robust.bootstrap(robust.mean, scores[name], generator=generator, draws=draws)
    iqm = robust.bootstrap(robust.interquartile_mean, scores[name], generator=generator, draws=draws)
    mine, other = given.by_start(name), given.by_start(base)
    shared = mine.columns.intersection(other.columns)
    above = gain = None
    if name != base and given.tasks(name) == given.tasks(base):
        pair = (scores[name], scores[base])
        above = robust.bootstrap(robust.probability_of_improvement, *pair, generator=generator, draws=draws)
    if name != base and len(shared):
        gain = difference(mine[shared].to_numpy(), other[shared].to_numpy(), generator, draws)
    episodes = int((given.played["configuration"] == name).sum())
    return Row(name, len(mine), episodes, mean, iqm, above, gain, len(shared))


def _notes(runs: dict[str, int], unit: str, rows: tuple[Row, ...], base: str, chosen: bool) -> tuple[str, ...]:
    said = []
    once = [name for name, count in runs.items() if count == 1]
    if unit == EPISODE:
        said.append(
            f"{len(once)} of {len(runs)} configurations were trained once: intervals cover the episodes alone, not "
            "what another training would give"
        )
    elif min(runs.values()) < FEW:
        said.append(
            f"intervals of fewer than {FEW} runs are too narrow: {min(runs.values())} runs are resampled here, and "
            "they cannot spread beyond what was seen"
        )
    if chosen and len(rows) > 1:
        said.append(f"the baseline is the configuration that came out lowest, {base}: differences to it are flattered")
    apart = [row.name for row in rows if row.name != base and row.gain is None]
    if apart:
        said.append(f"not compared with the baseline, for they met other starts: {'; '.join(apart)}")
    return tuple(said)
