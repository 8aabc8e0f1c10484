"""Loss against return: rank correlations, the link with errors on both sides, and what is warned of."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.stats import spearmanr

from scaling import agreement as agreements, link, scoring
from scaling.errors import UserError

TRUTH = {"low": 200.0, "high": 2200.0, "mid": np.log(0.35), "scale": 0.12, "sigma": 60.0}
THETA = np.array([200.0, 2000.0, np.log(0.35), np.log(0.12), np.log(60.0)])


def places(population: str, generator: np.random.Generator, count: int) -> np.ndarray:
    """True log losses: spread evenly, as over a grid of sizes, or normally."""
    if population == "even":
        return generator.uniform(np.log(0.2), np.log(0.6), count)
    return np.log(0.35) + 0.3 * generator.normal(size=count)


def world(seed: int, population: str = "even", configurations: int = 40, runs: int = 3, error: float = 0.08):
    """Losses with errors and returns with scatter, from a planted link."""
    generator = np.random.default_rng(seed)
    true = places(population, generator, configurations).repeat(runs)
    cluster = np.arange(configurations).repeat(runs)
    y = link.curve(THETA, true) + TRUTH["sigma"] * generator.normal(size=len(true))
    x = true + error * generator.normal(size=len(true))
    return link.Points(x, y, link.within(x, cluster), np.zeros(len(x)), cluster)


def naive(given: link.Points) -> link.Points:
    """The same runs with every loss taken as exact."""
    return dataclasses.replace(given, x_error=0.0, cluster=np.arange(len(given.x)))


def table(x: np.ndarray, y: np.ndarray, per_cell: int = 1) -> pd.DataFrame:
    """Runs as the outcomes of a results table hold them."""
    loss = np.exp(x)
    cell = [f"c{row // per_cell}" for row in range(len(x))]
    return pd.DataFrame(
        {"run_id": [f"r{row}" for row in range(len(x))], "cell": cell, "loss": loss, "loss_best": loss, "value": y}
    )


def episodes(runs: pd.DataFrame, spread: float, count: int = 20, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    values = runs["value"].to_numpy()[:, None] + spread * generator.normal(size=(len(runs), count))
    return pd.DataFrame({"run_id": runs["run_id"].repeat(count).to_numpy(), "value": values.ravel()})


def fitted(given: link.Points, starts: int = 12) -> dict[str, float]:
    return link.fit(given, np.random.default_rng(0), starts).parameters


def mean_of_fits(population: str, change=lambda given: given, worlds: int = 20) -> pd.Series:
    return pd.DataFrame([fitted(change(world(seed, population)), 6) for seed in range(worlds)]).mean()


@pytest.mark.parametrize("population", ["even", "normal"])
def test_the_planted_link_is_recovered_where_the_naive_one_is_too_flat(population):
    found = mean_of_fits(population)
    assert found["scale"] == pytest.approx(TRUTH["scale"], rel=0.04)
    assert found["mid"] == pytest.approx(TRUTH["mid"], abs=0.02)
    assert found["high"] == pytest.approx(TRUTH["high"], rel=0.02)
    assert found["low"] == pytest.approx(TRUTH["low"], abs=30)
    assert found["sigma"] == pytest.approx(TRUTH["sigma"], rel=0.2)
    flat = mean_of_fits(population, naive)
    assert flat["scale"] > 1.06 * TRUTH["scale"]
    assert flat["sigma"] > 2 * TRUTH["sigma"]


def test_without_errors_of_the_loss_the_link_is_that_of_plain_least_squares():
    given = world(0, error=0.0, runs=1)
    found = link.fit(given, np.random.default_rng(0))

    def squares(theta):
        return float(((given.y - link.curve(np.append(theta, 0.0), given.x)) ** 2).sum())

    plain = minimize(squares, THETA[:4], method="Nelder-Mead", options={"maxiter": 9000, "xatol": 1e-9, "fatol": 1e-9})
    np.testing.assert_allclose(found.theta[:4], plain.x, rtol=1e-4)
    assert found.parameters["sigma"] ** 2 == pytest.approx(plain.fun / len(given.x), rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_no_general_minimiser_finds_a_lower_objective(seed):
    given = world(seed, configurations=10)
    found = link.fit(given, np.random.default_rng(0), 24)
    centre, spread = (given.x.mean(), given.x.std()), (given.y.mean(), given.y.std())
    unit = link.Points(
        (given.x - centre[0]) / centre[1],
        (given.y - spread[0]) / spread[1],
        given.x_error / centre[1],
        given.y_error,
        given.cluster,
    )

    def value(theta):
        once = np.ones((1, len(unit.y)))
        local = scoring.objective(theta[None], unit.true, unit.y, unit.y_error, once)
        return local.value[0], local.gradient[0]

    bounds = [(-4, 3), (0, 9), (-5, 5), (np.log(0.02), np.log(10)), (np.log(0.01), np.log(3))]
    starts = np.random.default_rng(1).uniform(*np.transpose(bounds), size=(8, 5))
    best = min(minimize(value, start, jac=True, method="L-BFGS-B", bounds=bounds).fun for start in starts)
    assert found.objective <= best + 1e-6
    assert found.agree > 1


def test_the_gradient_and_the_expected_hessian_are_derivatives():
    given = world(0, configurations=6)
    given = dataclasses.replace(given, y=given.y / 1000, y_error=np.full(18, 0.05))
    theta = np.array([0.1, 2.0, np.log(0.4), np.log(0.2), np.log(0.3)])
    times = np.random.default_rng(0).integers(0, 3, size=(1, 18)).astype(float)

    def at(moved, y=given.y):
        return scoring.objective(moved[None], given.true, y, given.y_error, times)

    steps = 1e-6 * np.eye(5)
    numeric = [(at(theta + h).value - at(theta - h).value)[0] / 2e-6 for h in steps]
    np.testing.assert_allclose(at(theta).gradient[0], numeric, rtol=1e-6)
    generator = np.random.default_rng(1)
    drawn = np.array([at(theta, simulated(theta, given, generator)).gradient[0] for _ in range(4000)])
    weighted = np.einsum("dp,dq->pq", drawn, drawn) / len(drawn)
    once = scoring.objective(theta[None], given.true, given.y, given.y_error, times**2).hessian[0]
    np.testing.assert_allclose(np.diag(weighted), np.diag(once), rtol=0.1)


def simulated(theta, given, generator):
    """Returns as the model has them: normal, with the mean and the variance over the places."""
    values = link.curve(theta, given.true)
    mean = values @ scoring.WEIGHTS
    variance = given.y_error**2 + np.exp(2 * theta[4]) + (values - mean[:, None]) ** 2 @ scoring.WEIGHTS
    return mean + np.sqrt(variance) * generator.normal(size=len(mean))


def test_the_mean_and_variance_at_uncertain_places_agree_with_many_draws():
    given = world(0, configurations=1, runs=2)
    values = link.curve(THETA, given.true[0])
    spread = np.sqrt(scoring.WEIGHTS @ (given.true[0] - scoring.WEIGHTS @ given.true[0]) ** 2)
    draws = link.curve(THETA, scoring.WEIGHTS @ given.true[0] + spread * np.random.default_rng(0).normal(size=200_000))
    assert values @ scoring.WEIGHTS == pytest.approx(draws.mean(), rel=0.01)
    variance = ((values - values @ scoring.WEIGHTS) ** 2) @ scoring.WEIGHTS
    assert variance == pytest.approx(draws.var(), rel=0.03, abs=1)


def test_losses_between_many_others_are_not_shrunk_and_those_at_the_edge_are():
    generator = np.random.default_rng(0)
    x = np.sort(generator.uniform(-1, 1, 400))
    first, second = link.log_density(x)
    inner = np.abs(x) < 0.5
    assert np.abs(first[inner]).mean() < 1
    assert first[0] > 3
    assert first[-1] < -3
    normal = generator.normal(size=3000)
    slope = np.polyfit(normal, link.log_density(normal)[0], 1)[0]
    assert slope == pytest.approx(-1, abs=0.12)
    assert link.log_density(normal)[1][np.abs(normal) < 1].mean() == pytest.approx(-1, abs=0.2)
    assert np.isfinite(second).all()


def test_units_of_loss_and_return_move_only_what_carries_them():
    given = world(0)
    found = fitted(given)
    scaled = fitted(dataclasses.replace(given, x=given.x + np.log(10), y=5 * given.y))
    assert scaled["mid"] == pytest.approx(found["mid"] + np.log(10), abs=1e-5)
    assert scaled["scale"] == pytest.approx(found["scale"], rel=1e-4)
    for name in ("low", "high", "sigma"):
        assert scaled[name] == pytest.approx(5 * found[name], rel=1e-3)


def test_refits_hold_the_truth_and_repeat():
    given = world(1)
    found = link.fit(given, np.random.default_rng(0))
    refits = link.bootstrap(found, np.random.default_rng(0), 100)
    low, high = np.exp(np.quantile(refits.refits[:, 3], [0.025, 0.975]))
    assert low < TRUTH["scale"] < high < 3 * low
    np.testing.assert_array_equal(refits.refits, link.bootstrap(found, np.random.default_rng(0), 100).refits)
    below, above = refits.band(np.array([0.3, 0.4]))
    true = link.curve(THETA, np.log([0.3, 0.4]))
    assert (below < true).all()
    assert (true < above).all()


def test_the_curve_falls_everywhere():
    found = link.fit(world(2), np.random.default_rng(0))
    assert (np.diff(found.predict(np.geomspace(0.05, 2, 200))) <= 0).all()


def test_returns_that_do_not_depend_on_the_loss_are_as_well_described_by_a_level_line():
    given = world(0)
    noise = np.random.default_rng(5).normal(size=len(given.y))
    found = link.fit(dataclasses.replace(given, y=noise), np.random.default_rng(0))
    assert found.over_flat < 5
    assert link.fit(given, np.random.default_rng(0)).over_flat > 50


def test_returns_that_rise_with_the_loss_are_flagged():
    given = world(0)
    found = link.fit(dataclasses.replace(given, y=-given.y), np.random.default_rng(0))
    assert "the return does not fall with the loss" in found.flags or found.over_flat <= 0
    assert "a level line describes the returns as well (AIC)" in found.flags


def test_errors_come_from_repeated_runs_and_from_episodes():
    given = world(0, runs=10)
    runs = table(given.x, given.y, per_cell=10)
    made = link.points(runs, episodes(runs, spread=100.0), "loss")
    assert made.x_error == pytest.approx(0.08, rel=0.1)
    assert made.y_error.mean() == pytest.approx(100 / np.sqrt(20), rel=0.1)
    once = link.points(table(given.x, given.y), episodes(runs, 100.0), "loss")
    assert once.x_error == 0
    assert "no configuration was repeated: the loss is taken as exact" in link.fit(once, np.random.default_rng(0)).flags


def test_a_run_whose_episodes_all_end_alike_still_has_an_error():
    played = pd.DataFrame(
        {"run_id": ["a"] * 10 + ["b"] * 10, "value": [1.0] * 10 + [0.0, 1.0] * 5},
    )
    sure, open_ = link.standard_errors(played, pd.Series(["a", "b"]))
    assert 0 < sure < open_
    pooled = (10 / 4 / 9 * 9) / 18
    assert sure == pytest.approx(np.sqrt(pooled * 5 / 14 / 10))


def test_single_episodes_have_no_error_of_their_own():
    played = pd.DataFrame({"run_id": list("abc"), "value": [1.0, 2.0, 3.0]})
    np.testing.assert_array_equal(link.standard_errors(played, pd.Series(list("abc"))), 0)


def correlated(seed: int, slope: float, configurations: int = 20, runs: int = 2, noise: float = 0.1) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    x = generator.uniform(-2, 0, configurations).repeat(runs)
    return table(x, slope * x + noise * generator.normal(size=len(x)), runs)


def test_rank_correlation_of_a_weighted_table_is_that_of_the_repeated_rows():
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 6, 12).astype(float), generator.normal(size=12).round(1)
    times = generator.integers(0, 4, size=(20, 12))
    found = agreements.spearman(x, y, times)
    slow = [spearmanr(x.repeat(row), y.repeat(row)).statistic for row in times]
    np.testing.assert_allclose(found, slow, rtol=1e-10)


def test_a_constant_side_has_no_rank_correlation():
    assert np.isnan(agreements.spearman(np.zeros(4), np.arange(4.0), np.ones((1, 4)))).all()


@pytest.mark.parametrize(
    ("slope", "verdict"), [(-1.0, agreements.PREDICTS), (1.0, agreements.MISLEADS), (0.0, agreements.NO_SIGN)]
)
def test_the_verdict_follows_the_sign_of_the_relation(slope, verdict):
    told = agreements.agreement(correlated(0, slope), "loss", np.random.default_rng(0))
    assert told.every.verdict == verdict
    assert told.every.low <= told.every.spearman <= told.every.high
    assert told.every.kendall == pytest.approx(told.every.spearman, abs=0.25)
    assert bool(told.warnings) == (verdict != agreements.PREDICTS)


def test_a_loss_that_stops_predicting_among_the_better_runs_is_warned_of():
    """Below half of its range the loss says nothing; over all runs it still does."""
    generator = np.random.default_rng(3)
    x = np.linspace(-2, 0, 60)
    y = np.where(x < -1, 0.0, -x - 1) + 0.05 * generator.normal(size=60)
    told = agreements.agreement(table(x, y), "loss", np.random.default_rng(0))
    assert told.every.verdict == agreements.PREDICTS
    assert told.better.verdict == agreements.NO_SIGN
    assert any("among the 30 runs of lowest loss, the loss shows no relation" in said for said in told.warnings)


def test_few_configurations_cannot_tell_however_many_runs_they_have():
    told = agreements.agreement(correlated(0, -1.0, configurations=4, runs=10), "loss", np.random.default_rng(0))
    assert told.every.verdict == agreements.CANNOT_TELL
    assert "cannot tell whether the loss predicts the return: 4 configurations, 8 needed" in told.warnings


def test_runs_of_one_configuration_are_resampled_together():
    """Ten copies of each run add no evidence."""
    single = correlated(0, -1.0, runs=1, noise=0.5)
    copies = pd.concat([single.assign(run_id=single["run_id"] + str(k)) for k in range(10)], ignore_index=True)
    widths = []
    for runs in (single, copies):
        every = agreements.agreement(runs, "loss", np.random.default_rng(0)).every
        widths.append(every.high - every.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.15)


def test_intervals_of_the_rank_correlation_hold_none_where_there_is_none():
    held = 0
    for seed in range(200):
        every = agreements.agreement(correlated(seed, 0.0, runs=1), "loss", np.random.default_rng(seed), 300).every
        held += every.low <= 0 <= every.high
    assert held > 0.88 * 200


def test_runs_that_ended_above_their_best_loss_are_counted():
    runs = correlated(0, -1.0)
    span = runs["loss"].max() - runs["loss"].min()
    runs.loc[runs.index[:3], "loss_best"] = runs["loss"][:3] - np.array([0.2, 0.06, 0.01]) * span
    counted, excess = agreements.memorisation(runs)
    assert excess == pytest.approx(0.05 * (runs["loss"].max() - runs["loss_best"].min()))
    assert counted == 2
    told = agreements.agreement(runs, "loss", np.random.default_rng(0))
    assert any(said.startswith("2 of 40 runs ended above their lowest loss") for said in told.warnings)
    assert agreements.memorisation(runs.drop(columns="loss_best")) == (0, 0.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f[:4], r"4 run\(s\) with returns; .* at least 5"),
        (lambda f: f.assign(loss=0.2), "loss is 0.2 in every run"),
        (lambda f: f.assign(value=7.0), "return is 7 in every run"),
        (lambda f: f.assign(loss=f["loss"].where(f.index != 1)), "column 'loss' is no number in 1 of 40 runs"),
        (lambda f: f.drop(columns="loss"), "no column 'loss'; it has run_id, cell"),
    ],
)
def test_a_table_that_says_nothing_about_loss_and_return_is_refused(change, said):
    with pytest.raises(UserError, match=said):
        agreements.agreement(change(correlated(0, -1.0)), "loss", np.random.default_rng(0))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f[:5], "5 runs with returns; the link has 5 parameters and needs 6"),
        (lambda f: f.assign(loss=f["loss"] - 0.5), "column 'loss' must be positive to take its logarithm: -0.3"),
    ],
)
def test_runs_that_cannot_carry_a_link_are_refused(change, said):
    runs = change(correlated(0, -1.0))
    with pytest.raises(UserError, match=said):
        link.points(runs, episodes(runs, 1.0), "loss")


def test_what_a_loss_says_of_the_true_one_is_drawn_to_the_middle_of_a_normal_population():
    given = world(0, "normal", configurations=1000, runs=2, error=0.3)
    mean = np.bincount(given.cluster, given.x) / 2
    expected = (given.true @ scoring.WEIGHTS)[::2]
    slope = np.polyfit(mean, expected, 1)[0]
    assert slope == pytest.approx(0.09 / (0.09 + 0.09 / 2), abs=0.05)
