"""What budgets amount to, and when a run has converged."""

import dataclasses

import pytest

from scaling import course, plug, train
from scaling.cost import cost_of, subset_of
from scaling.datasets import d4rl
from scaling.errors import UserError
from scaling.spec import DataSpec, ModelSpec, RunSpec, TrainSpec

from conftest import build

SPEC = RunSpec(
    model=ModelSpec(kind="bc", width=16, depth=1, context=5, max_timestep=100),
    data=DataSpec(rtg_scale=10.0),
    train=TrainSpec(amount=3.0, batch=8),
)


def budget(kind: str, amount: float, **changes) -> RunSpec:
    return dataclasses.replace(SPEC, train=TrainSpec(budget=kind, amount=amount, batch=8, **changes))


@pytest.fixture
def store(hdf5):
    return build(hdf5, d4rl.read)


def test_every_budget_gives_the_updates_that_it_names(store):
    subset = subset_of(SPEC, store)
    transitions, steps = len(subset.training), subset.training.mean_steps()
    per_window = 3 * plug.load("models", "bc").flops(SPEC.model, store.space, 5)
    assert cost_of(budget("updates", 7.0), store).updates == 7
    assert cost_of(budget("convergence", 7.0), store).updates == 7
    assert cost_of(budget("epochs", 2.5), store).updates == -(-2.5 * transitions // 8)
    exposed = cost_of(budget("exposures", 20.0), store)
    assert exposed.exposures == pytest.approx(20.0, rel=8 * steps / (20 * transitions))
    paid = cost_of(budget("flops", 100.5 * 8 * per_window), store)
    assert paid.updates == 100
    assert 100 * 8 * per_window == paid.C


def test_equal_compute_means_fewer_updates_for_a_larger_model(store):
    wide = dataclasses.replace(budget("flops", 1e9), model=dataclasses.replace(SPEC.model, width=32))
    costs = [cost_of(budget("flops", 1e9), store), cost_of(wide, store)]
    assert costs[0].updates > costs[1].updates
    assert pytest.approx(costs[0].C, rel=0.01) == costs[1].C


def test_compute_that_does_not_suffice_for_one_update_is_refused(store):
    with pytest.raises(UserError, match=r"train\.amount 10 FLOPs is less than one update takes"):
        cost_of(budget("flops", 10.0), store)


@pytest.mark.parametrize(
    ("losses", "stops"),
    [([3, 2, 1], False), ([3, 1, 2], False), ([3, 1, 2, 1], True), ([1, 2, 0.9, 2, 0.9], True), ([1, 1], False)],
)
def test_a_run_has_converged_when_its_last_points_bring_no_new_lowest_loss(losses, stops):
    curve = [{"update": index, "loss": loss} for index, loss in enumerate(losses)]
    assert course.converged(curve, patience=2) is stops


def test_a_run_to_convergence_stops_and_its_row_says_what_it_took(store):
    spec = budget("convergence", 400.0, patience=1, evaluations=20, learning_rate=0.3, warmup=0.0)
    row = train.train(spec, store).row
    assert row["updates"] == row["curve"][-1]["update"] < 400
    assert row["updates"] % 20 == 0
    assert row["curve"][-1]["loss"] >= row["loss_best"]
    whole = cost_of(spec, store)
    assert row["C"] == pytest.approx(whole.C * row["updates"] / 400)
    assert row["tokens_seen"] == 3 * 5 * 8 * row["updates"]
    assert row["exposures"] == pytest.approx(whole.exposures * row["updates"] / 400, rel=0.05)
