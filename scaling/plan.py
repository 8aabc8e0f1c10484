"""What a sweep will take, before anything is started."""

import numpy as np

from scaling.cost import Cost, cost_of
from scaling.evaluate import check_env, check_recurrent
from scaling.runs import Runs
from scaling.train import seconds_per_update

Costs = dict[str, Cost]
"""Cost of each run by run_id."""


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


def estimate_seconds(runs: Runs, costs: Costs, budget: float = 1.5) -> dict[str, float]:
    """Seconds that each run will take in one process like this one, by run_id; rollouts are not counted.

    A few updates of the cheapest and of the dearest model are timed; the time of an update is taken to be linear in
    its FLOPs in between. A held-out loss costs a third of an update per window. Timing takes about ``budget`` seconds
    for each of the two.
    """
    per_update = {name: cost.C / cost.updates for name, cost in costs.items()}
    ends = {
        per_update[name]: name
        for name in (min(per_update, key=per_update.__getitem__), max(per_update, key=per_update.__getitem__))
    }
    seconds = [seconds_per_update(runs.specs[name], runs.store(runs.specs[name]), budget) for name in ends.values()]
    estimates = {}
    for name, spec in runs.specs.items():
        update = float(np.interp(per_update[name], list(ends), seconds))
        windows = spec.data.held_out * len(runs.store(spec).states) / spec.model.context
        held_out = spec.train.evaluations * windows / spec.train.batch / 3
        estimates[name] = update * (costs[name].updates + held_out)
    return estimates
