"""Which runs of a sweep are trained together: as many of one shape as memory holds and the machine is faster for.

What is packed together has no say in what comes out, so it is chosen here and now, by trying.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from scaling import garbage, population, train
from scaling.attempt import is_of_process
from scaling.checkpoint import Nobody
from scaling.cost import Cost
from scaling.errors import UserError
from scaling.packs import Packs
from scaling.plan import Costs
from scaling.population import Entry, shape_of
from scaling.runs import Runs
from scaling.spec import RunSpec
from scaling.stopwatch import median_seconds, seconds_of
from scaling.store import Store
from scaling.timing import check_room, free_memory
from scaling.training import silent

GAIN = 0.95
"""A larger pack must bring the time per run below this share of the best smaller one's, and of that of one alone."""

PATIENCE = 2
"""How many times larger a pack may be than the best before it without bringing anything."""

SLOW = 0.1
"""Seconds of one update on a CPU above which there is nothing to gain: arithmetic, not calls, takes the time."""

TRIAL = 0.2
"""Seconds of updates that are timed for each size."""

NO_LIMIT = 10**6
"""Members that have room where the free memory is not known."""

WORTH_TRYING = 2_500
"""Updates of all runs of a shape together below which a trial, which takes the time of hundreds, does not pay."""

MEMORY = 0.5
"""Share of the free memory that packs may take."""


def packs_of(runs: Runs, costs: Costs, names: Sequence[str], slots: int, wanted: int | None) -> Packs:
    """The packs of some runs of a sweep.

    Args:
        runs: the sweep.
        costs: of its runs.
        names: the runs to be done.
        slots: processes that will work on them at a time, none of which is to be idle.
        wanted: the size that the user asks for; nothing to find it by trying on this machine.

    Raises:
        UserError: a size is asked for, and no two runs of the sweep have a shape in common.

    """
    of_all: dict[str, Hashable] = {name: shape_of(spec, runs.store(spec).space) for name, spec in runs.specs.items()}
    if wanted is not None and wanted > 1 and len(set(of_all.values())) == len(of_all):
        raise UserError(
            f"--pack {wanted}: no two of the {len(of_all)} runs of the sweep have the shape in common (all of model, "
            "train.batch, train.precision and the dataset's space), so none can be trained together"
        )
    shapes = {name: of_all[name] for name in names}
    alike: dict[Hashable, list[str]] = defaultdict(list)
    for name, shape in shapes.items():
        alike[shape].append(name)
    if wanted is not None:
        return Packs(shapes, dict.fromkeys(alike, wanted), dict.fromkeys(alike, 1.0))
    sizes, shares = dict.fromkeys(alike, 1), dict.fromkeys(alike, 1.0)
    for shape, each in sorted(alike.items(), key=lambda item: _work(costs[item[1][0]])):
        most, smallest = -(-len(each) // slots), min(each, key=lambda name: costs[name].D)
        if most == 1 or sum(costs[name].updates for name in each) < WORTH_TRYING:
            continue
        sizes[shape], shares[shape] = _tried(runs, smallest, most, slots)
        if sizes[shape] == 1:  # larger ones gain even less
            break
    return Packs(shapes, sizes, shares)


def _work(cost: Cost) -> float:
    """FLOPs of an update."""
    return cost.C / cost.updates


def _tried(runs: Runs, name: str, limit: int, slots: int) -> tuple[int, float]:
    """The best size among powers of two and the limit, and its time per run over that of one alone.

    These two are timed twice, and the shorter time counts: what was slow once may have been the machine.

    What is timed is one run so many times over; the data that a network is trained on hardly matter.
    """
    specs, store = [runs.specs[name]] * limit, runs.store(runs.specs[name])
    found: dict[int, float] = {}

    def time_again(size: int) -> float:
        seconds = seconds_per_update(specs[:size], store) / size
        found[size] = min(seconds, found.get(size, seconds))
        return found[size]

    garbage.collect()
    try:
        check_room(specs[0], store)
        slow, best = time_again(1) > SLOW and not torch.cuda.is_available(), 1
        for size in _sizes(1 if slow else min(limit, _room(runs, name, slots))):
            if time_again(size) <= GAIN * found[best]:
                best = size
            elif size > PATIENCE * best:
                break
        if best > 1:  # machines drift
            time_again(best)
            time_again(1)
    except Exception as error:  # as for want of memory; what was tried before stands
        if is_of_process(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    gaining = {size: seconds / found[1] for size, seconds in found.items() if seconds <= GAIN * found[1]}
    best = min(gaining, key=gaining.__getitem__, default=1)
    return best, gaining.get(best, 1.0)


def _sizes(most: int) -> list[int]:
    """What is tried beside one run alone."""
    return [2**power for power in range(1, 8) if 2**power < most] + ([most] if most > 1 else [])


def _room(runs: Runs, name: str, slots: int) -> int:
    """How many networks of this shape have room in memory at a time, in each of the processes."""
    spec = runs.specs[name]
    kept: dict[int, int] = {}

    def count(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    counting = torch.autograd.graph.saved_tensors_hooks(count, lambda x: x)
    with train.rehearsal(spec, runs.store(spec)) as training, counting:
        training.update()
    free = (free_memory() or math.inf) / slots
    return int(min(NO_LIMIT, max(1.0, MEMORY * free / max(1, sum(kept.values())))))


def seconds_per_update(specs: Sequence[RunSpec], store: Store) -> float:
    """Median wall time of one update of these runs, trained together, or of one that is trained alone."""
    entries = [Entry(spec=spec, store=store, report=silent, keeper=Nobody(), state=None) for spec in specs]
    trial = train.rehearsal(specs[0], store) if len(specs) == 1 else population.rehearsal(entries)
    with trial as trained:
        device = trained.accelerator.device
        for _ in range(trained.step.first):
            seconds_of(trained.update, device)
        return median_seconds(trained.update, device, TRIAL, least=3)
