"""How often a verdict would separate, with a given grid and noise, before anything is spent.

Worlds are drawn from a law with known numbers; each is fitted, bootstrapped and answered like a real table.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scaling.answer import CANNOT_TELL, DATA, MODEL, answer
from scaling.data import Data, prepare
from scaling.ensemble import single
from scaling.errors import UserError
from scaling.fit import fit
from scaling.intervals import bootstrap
from scaling.law import Law
from scaling.nulls import simulate
from scaling.power_sum import PowerSum

WORLDS, DRAWS, STARTS = 100, 200, 8
ENOUGH = 0.8
"""Share of worlds with a verdict that counts as enough power."""


@dataclass(frozen=True)
class Power:
    """What a grid could be expected to say."""

    repeats: int
    """Seeds (each with its own draw of the data) per configuration."""
    runs: int
    more_data: float
    bigger_model: float
    cannot_tell: float
    right: float
    """Share of worlds whose verdict is the true one."""


def truth(law: Law, values: Mapping[str, float]) -> Callable[[pd.DataFrame], np.ndarray]:
    """Loss by row, from a law's numbers on their natural scales.

    Raises:
        UserError: a number is missing or unknown, or the law is no sum of power laws.

    """
    if not isinstance(law, PowerSum):
        raise UserError(f"the numbers of {law.name} cannot be set by hand; use --like TABLE")
    wanted = [*law.summands, *law.exponents]
    wrong = sorted(set(wanted) ^ set(values))
    if wrong:
        raise UserError(f"law {law.name} needs the numbers {', '.join(wanted)}; not matched: {', '.join(wrong)}")
    low = [name for name in law.summands if not 0 < values[name] < np.inf]
    if low:
        raise UserError(f"{low[0]} must be a positive number: {values[low[0]]}")
    if not all(np.isfinite(value) for value in values.values()):
        raise UserError(f"the exponents of {law.name} must be finite numbers")
    theta = np.array([np.log(values[name]) for name in law.summands] + [values[name] for name in law.exponents])

    def loss(frame: pd.DataFrame) -> np.ndarray:
        log_x = {name: np.log(frame[name].to_numpy(float)) for name in law.inputs}
        return np.exp(law.bind(log_x, dict.fromkeys(law.inputs, 0.0), len(frame)).value(theta[None])[0])

    return loss


def power(
    grid: pd.DataFrame,
    law: Law,
    loss: Callable[[pd.DataFrame], np.ndarray],
    sd: tuple[float, float],
    repeats: tuple[int, ...],
    worlds: int = WORLDS,
    seed: int = 0,
) -> Iterator[Power]:
    """How often the verdict separates, for each number of repeats.

    Args:
        grid: a row per configuration with N, D and ``fraction``; repeats are made here.
        law: what is fitted.
        loss: the true loss of each row.
        sd: standard deviation of log loss between seeds, and between subsets of one size.
        repeats: seeds per configuration to try.
        worlds: simulated tables for each.
        seed: of the simulation.

    """
    if set(law.inputs) != {"N", "D"}:
        raise UserError(f"power needs a law in N and D; {law.name} takes {', '.join(law.inputs) or 'neither'}")
    n, d = float(grid["N"].max()), float(grid["D"].max())
    top = pd.DataFrame({"N": [n, n, 2 * n], "D": [d, 2 * d, d]})
    here, data, model = loss(top)
    right = DATA if here - data > here - model else MODEL
    for count in repeats:
        rows = pd.concat([grid.assign(draw=i, seed=i) for i in range(count)], ignore_index=True)
        rows["loss"] = loss(rows)
        table = prepare(rows, "loss", ("N", "D"))
        generator = np.random.default_rng([seed, count])
        verdicts = [_verdict(table, law, y) for y in simulate(table, table.log_loss, sd, worlds, generator)]
        share = {name: verdicts.count(name) / worlds for name in (DATA, MODEL, CANNOT_TELL)}
        yield Power(count, len(rows), share[DATA], share[MODEL], share[CANNOT_TELL], share[right])


def _verdict(table: Data, law: Law, log_loss: np.ndarray) -> str:
    world = dataclasses.replace(table, log_loss=log_loss, frame=table.frame.assign(loss=np.exp(log_loss)))
    try:
        return answer(single(bootstrap(fit(law, world, starts=STARTS), DRAWS))).verdict
    except UserError:
        return CANNOT_TELL
