"""How long the runs of a sweep take here: trials of some of its shapes, the others read off between them.

Between two shapes of a family the logarithm of a time is taken to be linear in that of the FLOPs; below the cheapest it
is the cheapest's, above the dearest it is in proportion to the FLOPs.
"""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scaling import garbage
from scaling.spec import RunSpec
from scaling.store import Store
from scaling.timing import Timing, timing_of

EACH = (0.1, 1.5)
"""Least and most seconds for the trial of a shape, beside building it."""

Trials = dict["Shape", Timing | None]
"""What was found, nothing where memory does not suffice."""


@dataclass(frozen=True)
class Shape:
    """What runs have in common that take equally long per update, per window and per step.

    They differ in subset, seed, learning rate or length.
    """

    key: tuple[Any, ...]
    spec: RunSpec = field(compare=False, repr=False)
    """Of one of them."""
    store: Store = field(compare=False, repr=False)
    flops: float = field(compare=False)
    """Of a window, forward and backward."""

    @property
    def family(self) -> tuple[Any, ...]:
        """What shapes have in common between which times can be read off."""
        return self.spec.model.kind, self.spec.train.precision, self.spec.evaluate, self.store.digest


def shape_of(spec: RunSpec, store: Store, flops: float) -> Shape:
    """The shape of a run whose window takes so many FLOPs."""
    return Shape((spec.model, spec.train.batch, spec.train.precision, spec.evaluate, store.digest), spec, store, flops)


def warm_up(shapes: Sequence[Shape]) -> float:
    """Seconds for what a process does but once, as late imports and the loading of kernels, and a shortest trial."""
    garbage.collect()
    cheapest, begin = min(shapes, key=lambda shape: shape.flops), time.perf_counter()
    timing_of(cheapest.spec, cheapest.store, 0.0)
    return time.perf_counter() - begin


def calibrate(shapes: Sequence[Shape], budget: float) -> Trials:
    """Trials of the cheapest and the dearest shape of each family, then of others until about ``budget`` is spent."""
    each, end = float(np.clip(budget / len(shapes), *EACH)), time.perf_counter() + budget
    trials: Trials = {}
    while shape := _next(shapes, trials, time.perf_counter() > end):
        trials[shape] = timing_of(shape.spec, shape.store, each)
    return trials


def _next(shapes: Iterable[Shape], trials: Trials, late: bool) -> Shape | None:
    """The shape farthest from those of its family that were timed; when it is late, only where that is none or one."""

    def distances(shape: Shape) -> list[float]:
        timed = (other for other, timing in trials.items() if timing and other.family == shape.family)
        return [abs(math.log(shape.flops / other.flops)) for other in timed]

    left = {shape: found for shape in shapes if shape not in trials for found in [distances(shape)]}
    wanted = [shape for shape, found in left.items() if not late or len(found) < 2]
    return max(wanted, key=lambda shape: (min(left[shape], default=math.inf), -shape.flops), default=None)


def timing(shape: Shape, trials: Trials) -> Timing | None:
    """What the shape takes, by its trial or read off from others; nothing if none could be timed."""
    if trials.get(shape):
        return trials[shape]
    timed = {other: found for other, found in trials.items() if found}
    kin = {other: found for other, found in timed.items() if other.family == shape.family} or timed
    return _read_off(shape, kin) if kin else None


def _read_off(shape: Shape, timed: dict[Shape, Timing]) -> Timing:
    """Between the timed shapes."""

    def at(name: str, batches: bool = False) -> float:
        sizes = {other: other.flops * (other.spec.train.batch if batches else 1) for other in (shape, *timed)}
        ordered = sorted(timed, key=sizes.__getitem__)
        known = [sizes[other] for other in ordered], [getattr(timed[other], name) for other in ordered]
        return log_log(sizes[shape], *known)

    return Timing(prepare=at("prepare"), update=at("update", batches=True), window=at("window"), step=at("step"))


def log_log(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """The value at x: between ascending points linear in the logarithms, below them flat, above them in proportion."""
    if x > xs[-1]:
        return ys[-1] * x / xs[-1]
    return float(np.exp(np.interp(math.log(x), np.log(xs), np.log(np.maximum(ys, 1e-12)))))
