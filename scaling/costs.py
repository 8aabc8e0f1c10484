"""What a budget buys on either side: transitions collected, or GPU-hours for a bigger model."""

from dataclasses import dataclass

import numpy as np

from scaling.data import levels
from scaling.ensemble import Ensemble
from scaling.errors import UserError
from scaling.intervals import percentile


@dataclass(frozen=True)
class Costs:
    """The user's prices, in any currency."""

    transition: float
    """Of one recorded transition."""
    gpu_hour: float
    """Of one hour of training."""
    budget: float | None = None
    """To spend; by default what the cheaper of two doublings would take."""
    hours: float | None = None
    """Of training the largest model on all data; by default from the table's train_seconds."""


@dataclass(frozen=True)
class Spending:
    """A budget spent on one side or on both. Either way one model is trained, at a cost in proportion to its size."""

    budget: float
    hours: float
    """Of training the largest model of the table."""
    more_data: float
    """Transitions that can be had if the largest model is trained again on them."""
    bigger_model: float
    """Factor on the largest model if no data are collected."""
    data_share: float
    """Of the budget, best spent on data."""
    low: float
    high: float
    """95 % interval of the share over the draws."""

    def ends(self, n: float, d: float) -> tuple[np.ndarray, np.ndarray]:
        """(N, D) as they are, with all spent on data, and with all spent on the model."""
        return np.array([n, n, n * self.bigger_model]), np.array([d, d + self.more_data, d])

    def in_words(self) -> str:
        """The budget in a sentence."""
        share = f"{self.data_share:.0%} [{self.low:.0%}, {self.high:.0%}]"
        return (
            f"A budget of {self.budget:,.6g} buys {self.more_data:,.0f} transitions, or a model "
            f"{self.bigger_model:.2f} times as large; best is {share} of it on data."
        )


def spend(draws: Ensemble, costs: Costs, n: float, d: float) -> Spending:
    """What the budget buys from N = n and D = d, and its best split.

    Raises:
        UserError: the budget does not pay for training the largest model again, or hours are unknown.

    """
    hours = costs.hours if costs.hours is not None else _hours(draws, n, d)
    training = costs.gpu_hour * hours
    budget = costs.budget if costs.budget is not None else min(2 * training, costs.transition * d + training)
    if budget <= training:
        raise UserError(
            f"a budget of {budget:g} does not pay for training the largest model once more ({training:g}: "
            f"{hours:.3g} hours); raise --budget or lower --cost-per-gpu-hour"
        )
    most = budget / training
    size = np.linspace(1.0, most, 101)
    loss = draws.loss(n * size, d + (budget - training * size) / costs.transition)
    shares = (budget - training * size) / budget
    low, high = percentile(shares[np.argmin(loss, axis=1)])
    best = shares[int(np.argmin(loss.mean(axis=0)))]
    more = (budget - training) / costs.transition
    return Spending(budget, hours, more, most, float(best), float(low), float(high))


def _hours(draws: Ensemble, n: float, d: float) -> float:
    frame, amount = draws.data.frame, levels(draws.data, "D")
    if "train_seconds" not in frame or not frame["train_seconds"].notna().all():
        raise UserError(
            "the table has no train_seconds to tell what a bigger model costs; say with --hours how long the "
            "largest model takes to train on all data"
        )
    top = frame[(frame["N"] == n).to_numpy() & (amount == amount.max())]
    seconds = top["train_seconds"].mean() if len(top) else frame.loc[frame["N"] == n, "train_seconds"].max()
    return float(seconds) / 3600
