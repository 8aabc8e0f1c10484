"""What a sweep will take, before anything is started."""

import heapq
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scaling import neighbours
from scaling.calibration import Shape, calibrate, shape_of, timing, warm_up
from scaling.cost import Cost, cost_of, subset_of
from scaling.packs import Packs
from scaling.rollouts import check_env, check_recurrent
from scaling.runs import Runs
from scaling.spec import RunSpec
from scaling.store import Store
from scaling.timing import Timing

Costs = dict[str, Cost]
"""Cost of each run by run_id."""

BUDGET = 6.0
"""Seconds of trials; with what a process does but once, and the last trial begun, a plan takes somewhat longer."""

START_UP, IMPORTS = 3.0, 3.5
"""Seconds from the command to the first run: a constant, and so many times what imports take in one process.

The driver imports while Ray and its own processes start, then those that train, all at once. ``python -m
benchmarks.prediction`` measures it: on two cores 13 to 16 s, where imports took 3 s.
"""

PER_RUN = 0.3
"""Seconds that a run takes beside what is tried: claim, rows, Tune's next trial. Measured by the same."""

PER_UPDATE = 5e8
"""FLOPs in whose time a core does what an update takes whatever the size of the network; an order of magnitude."""


def plan(runs: Runs) -> Costs:
    """The cost of every run of the sweep.

    Raises:
        UserError: a run does not fit its dataset or its environment.

    """
    for spec in {(runs.store(s).digest, s.evaluate, s.model.kind): s for s in runs.specs.values()}.values():
        check_env(spec, runs.store(spec).space)
    for spec in runs.specs.values():
        check_recurrent(spec)
    return {name: cost_of(spec, runs.store(spec)) for name, spec in runs.specs.items()}


def longest_first(costs: Costs, names: Iterable[str]) -> list[str]:
    """The order in which runs are started, so that no long one is left for the end."""
    return sorted(names, key=lambda name: costs[name].C, reverse=True)


def proportion(cost: Cost) -> float:
    """How long a run takes in proportion to others, for a display that needs no more and cannot wait for trials."""
    return cost.C + PER_UPDATE * cost.updates


def makespan(seconds: Sequence[float], slots: int) -> float:
    """Seconds until all are done, each begun in this order as soon as one of the slots is free."""
    ends = [0.0] * slots
    for taken in seconds:
        heapq.heapreplace(ends, ends[0] + taken)
    return max(ends)


@dataclass(frozen=True, eq=False)
class Estimate:
    """What the runs of a sweep will take here."""

    seconds: dict[str, float]
    """Of each run by run_id; of those that do not fit into memory, what they would take with more of it."""
    parts: dict[str, int]
    """Runs that do not fit into memory whole: in how many parts they would compute a batch, or none if no part fits."""
    tried: int
    """Shapes that were tried."""
    shapes: int
    warm: float
    """Seconds that a process takes to do what it does but once."""
    took: float
    """Seconds that it took to find out."""

    def packed(self, packs: Packs) -> "Estimate":
        """The same where runs are trained together."""
        return replace(self, seconds={name: seconds * packs.share(name) for name, seconds in self.seconds.items()})

    def wall(self, costs: Costs, names: Iterable[str], slots: int, imports: float = 0.0) -> float:
        """Seconds from the command to the last row, if these runs are left; those that do not fit fail in no time.

        Args:
            costs: of all runs.
            names: the runs that are left.
            slots: runs at a time.
            imports: seconds that a process takes to import what trains.

        """
        left = [name for name in longest_first(costs, names) if self.parts.get(name, 1)]
        start_up = START_UP + IMPORTS * imports + self.warm
        return start_up + makespan([self.seconds[name] for name in left], slots) if left else 0.0


def estimate(runs: Runs, costs: Costs, budget: float = BUDGET, company: int = 0, threads: int = 1) -> Estimate:
    """What each run will take, from trials of about ``budget`` seconds in all.

    Counted are updates, held-out losses, rollouts, and what a run takes besides. Of every kind of network the cheapest
    and the dearest shape are tried at any rate; see :mod:`scaling.calibration` for those between. Rollouts are taken to
    last as long as recorded episodes, and a run to convergence to take all the updates it may.

    Args:
        runs: the sweep.
        costs: of its runs.
        budget: seconds.
        company: processes that are kept busy meanwhile, as other runs will be.
        threads: of each of these.

    """
    begin = time.perf_counter()
    shapes = {name: _shape(runs, name, costs[name]) for name in runs.specs}
    with neighbours.busy(company, threads):
        distinct = list(dict.fromkeys(shapes.values()))
        warm = warm_up(distinct)
        trials = calibrate(distinct, budget)
    points = _Points()
    seconds = {
        name: _seconds(spec, shapes[name], costs[name], timing(shapes[name], trials), points)
        for name, spec in runs.specs.items()
    }
    tight = {shape: found.micro_batches if found else 0 for shape, found in trials.items()}
    parts = {name: tight[shape] for name, shape in shapes.items() if tight.get(shape, 1) != 1}
    return Estimate(seconds, parts, len(trials), len(distinct), warm, time.perf_counter() - begin)


def _shape(runs: Runs, name: str, cost: Cost) -> Shape:
    spec = runs.specs[name]
    return shape_of(spec, runs.store(spec), cost.C / (cost.updates * spec.train.batch))


def _seconds(spec: RunSpec, shape: Shape, cost: Cost, timing: Timing | None, points: "_Points") -> float:
    """What a run takes whose parts take so long."""
    if timing is None:
        return 0.0
    held_out = min(spec.train.evaluations, cost.updates) * points.windows(spec, shape.store) * timing.window
    played = rollout_steps(spec, shape.store) * timing.step
    return PER_RUN + timing.prepare + cost.updates * timing.update + held_out + played


class _Points:
    """Counts the windows of a held-out loss, once for all runs that share them."""

    def __init__(self) -> None:
        self._counted: dict[tuple[object, ...], int] = {}

    def windows(self, spec: RunSpec, store: Store) -> int:
        """Of one point of the curve."""
        key = store.digest, spec.data.held_out, spec.model.context
        if key not in self._counted:
            self._counted[key] = len(subset_of(spec, store).held_out.tiles())
        return self._counted[key]


def rollout_steps(spec: RunSpec, store: Store) -> float:
    """Steps until the last of a run's rollouts ends, if they last as long as episodes recorded by chance: E[max]."""
    if spec.evaluate.env is None:
        return 0.0
    lengths = np.minimum(np.sort(store.lengths), spec.evaluate.max_steps)
    below = np.arange(len(lengths) + 1) / len(lengths)
    episodes = spec.evaluate.episodes * len(spec.evaluate.targets)
    return float((np.diff(below**episodes) * lengths).sum())
