"""Bootstrap, intervals and the verdict on worlds whose answer is known."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from scaling import answer as answers, fit as fits, newton
from scaling.costs import Costs
from scaling.ensemble import Ensemble, single
from scaling.errors import UserError
from scaling.intervals import PAIRS, WILD, Bootstrap, bca, bootstrap, percentile
from scaling.objective import Objective
from scaling.variance import components

from conftest import loss_world


def resampled(frame: pd.DataFrame, draws: int = 200, law: str = "additive") -> Bootstrap:
    return bootstrap(fits.fit(fits.load_law(law), fits.prepare(frame, "loss_best")), draws)


def asked(frame: pd.DataFrame, draws: int = 200) -> answers.Answer:
    return answers.answer(single(resampled(frame, draws)))


def test_refits_sit_at_their_own_optimum():
    draws = resampled(loss_world(0.02), draws=20)
    fitted = draws.fit
    assert draws.method == f"{PAIRS} over 25 cells"
    times = np.random.default_rng(0).multinomial(25, np.full(25, 1 / 25), size=20)
    assert draws.failures == 0
    weight = times[:, fitted.data.cell].astype(float)
    problem = fits.problem_of(fitted.law, fitted.data, fitted.how)
    gradient, hessian = problem.derivatives(draws.theta, weight, fitted.data.log_loss[None], fitted.how)
    free = draws.theta > problem.low + 1
    assert np.abs(gradient * free).max() / fitted.data.rows < newton.TOLERANCE
    assert (np.linalg.eigvalsh(hessian)[:, 0] > -1e-6).all()
    fresh = newton.solve(problem, np.repeat(fitted.theta[None], 20, axis=0), weight)
    np.testing.assert_array_less(
        problem.value(draws.theta, weight, fitted.data.log_loss[None], fitted.how) * fitted.how.delta,
        fresh.objective * (1 + 1e-9) + 1e-15,
    )


def test_the_same_seed_gives_the_same_draws():
    frame = loss_world(0.02)
    np.testing.assert_array_equal(resampled(frame, 30).theta, resampled(frame, 30).theta)


def test_intervals_hold_the_truth_and_widen_with_noise():
    quiet, loud = (resampled(loss_world(noise)) for noise in (0.005, 0.03))
    for kind in ("percentile", "bca"):
        low, high = quiet.intervals()[kind]["beta"]
        low_loud, high_loud = loud.intervals()[kind]["beta"]
        assert low < 0.45 < high
        assert high_loud - low_loud > 2 * (high - low)


def test_runs_of_a_cell_are_drawn_together():
    """Doubling every run changes nothing when cells are the unit; it would narrow intervals of single runs."""
    frame = loss_world(0.02, seeds=1)
    twice = pd.concat([frame, frame.assign(seed=1)], ignore_index=True)
    np.testing.assert_allclose(
        np.std(resampled(frame).parameters["beta"]), np.std(resampled(twice).parameters["beta"]), rtol=1e-3
    )


def test_few_clusters_are_resampled_by_webb_weights():
    frame = loss_world(0.02, seeds=3).assign(draw=lambda f: f["seed"])
    few = frame[frame["draw"] < 2]
    assert resampled(frame, 20).method == f"{PAIRS} over 15 subsets"
    wild = resampled(few)
    assert wild.method == f"{WILD} over 10 subsets"
    spread = float(np.std(wild.parameters["beta"]))
    assert spread == pytest.approx(np.std(resampled(frame).parameters["beta"]), rel=0.6)


def test_noise_that_a_subset_shares_widens_the_interval_of_beta():
    """Runs on one subset err together; taking them for independent would hide it."""
    generator = np.random.default_rng(0)
    frame = loss_world(0.002, seeds=6).assign(draw=lambda f: f["seed"])
    keys = frame.groupby(["fraction", "draw"]).ngroup().to_numpy()
    shared = frame.assign(loss_best=frame["loss_best"] * np.exp(0.02 * generator.standard_normal(keys.max() + 1)[keys]))

    def width(table):
        low, high = resampled(table).intervals()["percentile"]["beta"]
        return high - low

    assert width(shared) > 1.5 * width(shared.drop(columns="draw"))


def test_bca_agrees_with_the_formula_by_hand():
    generator = np.random.default_rng(0)
    values = generator.gamma(2.0, size=4000)
    left_out = np.array([1.0, 2.0, 4.0, 9.0])
    low, high = bca(values, float(np.median(values)), left_out)
    spread = left_out.mean() - left_out
    a = (spread**3).sum() / (6 * (spread**2).sum() ** 1.5)
    z = 1.959963984540054
    from scipy.stats import norm

    expected = [np.quantile(values, norm.cdf(s * z / (1 - a * s * z))) for s in (-1, 1)]
    assert (low, high) == pytest.approx(expected, rel=1e-3)
    plain = percentile(values)
    assert bca(values, float(np.median(values)), np.ones(4)) == pytest.approx(plain, rel=1e-3)


def test_a_new_run_spreads_more_than_the_mean():
    draws = resampled(loss_world(0.02))
    point = {"N": np.array([5e4]), "D": np.array([2e4])}
    (low, high), (run_low, run_high) = (percentile(x[:, 0]) for x in (draws.predict(point), draws.predict_run(point)))
    assert run_low < low < high < run_high
    assert run_high / run_low == pytest.approx(np.exp(2 * 1.96 * 0.02), rel=0.2)


def test_variance_components_are_recovered():
    generator = np.random.default_rng(0)
    frame = loss_world(0.02, seeds=40).assign(draw=lambda f: f["seed"])
    keys = frame.groupby(["fraction", "draw"]).ngroup().to_numpy()
    subset = 0.03 * generator.standard_normal(keys.max() + 1)[keys] * (frame["fraction"] < 1)
    data = fits.prepare(frame.assign(loss_best=frame["loss_best"] * np.exp(subset)), "loss_best")
    found = components(data, data.log_loss)
    assert found.subset == pytest.approx(0.03, rel=0.15)
    assert found.seed == pytest.approx(0.02, rel=0.15)
    everywhere = components(fits.prepare(loss_world(0.02, seeds=40), "loss_best"), data.log_loss - subset)
    assert everywhere.seed == pytest.approx(0.02, rel=0.05)
    assert everywhere.subset is None
    once = fits.prepare(loss_world(0.02, seeds=1), "loss_best")
    assert components(once, once.log_loss).seed is None


def test_one_cluster_has_no_interval():
    frame = loss_world(0.02).assign(run_id="only", N=1e5)
    data = fits.prepare(frame, "loss_best")
    with pytest.raises(UserError, match="all rows belong to one run"):
        bootstrap(fits.fit(fits.load_law("power_d"), data))


def test_a_large_table_gets_one_newton_step_per_draw_and_the_same_spread(monkeypatch):
    from scaling import intervals

    frame = loss_world(0.02, seeds=40).drop(columns=["fraction", "width", "depth"])
    frame["N"] *= np.exp(0.01 * np.random.default_rng(0).standard_normal(len(frame)))
    slow = np.std(resampled(frame, 300).parameters["beta"])
    monkeypatch.setattr(intervals, "LINEAR", 500)
    quick = resampled(frame, 300)
    assert quick.method.endswith("one Newton step each")
    assert np.std(quick.parameters["beta"]) == pytest.approx(slow, rel=0.25)


def gains_by_hand(truth: dict[str, float], n: float, d: float) -> tuple[float, float]:
    def loss(n, d):
        return truth["E"] + truth["A"] * n ** -truth["alpha"] + truth["B"] * d ** -truth["beta"]

    return 1 - loss(n, 2 * d) / loss(n, d), 1 - loss(2 * n, d) / loss(n, d)


def test_the_verdict_is_right_where_one_side_clearly_pays():
    data_pays = loss_world(0.004, law=lambda N, D: 0.1 + 0.2 * N**-0.3 + 6 * D**-0.45)
    model_pays = loss_world(0.004, law=lambda N, D: 0.1 + 6 * N**-0.4 + 0.2 * D**-0.3)
    given = asked(data_pays)
    assert given.verdict == "more data"
    assert given.probability > 0.95
    truth = gains_by_hand({"E": 0.1, "A": 0.2, "B": 6, "alpha": 0.3, "beta": 0.45}, 1.4e5, 4.8e4)
    assert given.data.low < truth[0] < given.data.high
    assert (given.N, given.D) == (1.4e5, 4.8e4)
    assert given.regret["data"] < given.regret["model"]
    opposite = asked(model_pays)
    assert opposite.verdict == "a bigger model"
    assert opposite.probability < 0.05
    truth = gains_by_hand({"E": 0.1, "A": 6, "B": 0.2, "alpha": 0.4, "beta": 0.3}, 1.4e5, 4.8e4)
    assert opposite.model.estimate == pytest.approx(truth[1], rel=0.1)
    assert opposite.next_cells == ()


EVEN = loss_world(0.02, law=lambda N, D: 0.1 + N**-0.25 + (D * 1.4e5 / 4.8e4) ** -0.25)


def test_where_both_pay_alike_it_cannot_be_told_and_cells_are_named():
    given = asked(EVEN)
    assert given.verdict == "cannot tell"
    assert 0.05 < given.probability < 0.95
    assert len(given.next_cells) == 3
    left = [cell.variance_left for cell in given.next_cells]
    assert 1 > left[0] > left[1] > left[2] > 0
    assert {"width", "fraction"} == set(given.next_cells[0].settings)
    words = answers.in_words(given)
    assert words.startswith("Verdict: cannot tell.")
    assert "Run next, with new seeds and draws: " in words
    assert "width" in words


def test_the_size_at_which_both_help_alike_is_found():
    """A N^-a = B D^-a there, as alpha = beta."""
    quiet = loss_world(0.002, law=lambda N, D: 0.1 + 2 * N**-0.3 + 2 * D**-0.3)
    balance = asked(quiet).balance
    assert balance.low < 4.8e4 < balance.high
    assert balance.estimate == pytest.approx(4.8e4, rel=0.3)
    assert balance.inside


def test_prices_decide_and_the_best_split_is_named():
    draws = single(resampled(EVEN))
    dear_data = answers.answer(draws, Costs(transition=1.0, gpu_hour=1.0, budget=200.0, hours=100.0))
    dear_model = answers.answer(draws, Costs(transition=1e-4, gpu_hour=10.0, budget=1100.0, hours=100.0))
    assert dear_data.verdict == "a bigger model"
    assert dear_model.verdict == "more data"
    assert dear_data.spending.bigger_model == pytest.approx(2.0)
    assert dear_data.spending.more_data == pytest.approx(100.0)
    assert dear_data.spending.data_share < 0.1
    assert dear_model.spending.more_data == pytest.approx(1e6)
    assert 0.05 < dear_model.spending.data_share < 0.1
    assert "A budget of 200 buys 100 transitions, or a model 2.00 times as large" in answers.in_words(dear_data)


@pytest.mark.parametrize(
    ("costs", "said"),
    [
        (Costs(transition=1.0, gpu_hour=1.0), "no train_seconds .* --hours"),
        (Costs(transition=1.0, gpu_hour=1.0, budget=5.0, hours=10.0), "budget of 5 does not pay .* once more"),
    ],
)
def test_a_budget_that_buys_nothing_is_refused(costs, said):
    with pytest.raises(UserError, match=said):
        answers.answer(single(resampled(EVEN, 20)), costs)


def test_laws_that_disagree_widen_the_answer():
    """Two laws at half weight each: the gains mix, and the probability lies between theirs."""
    steep = resampled(loss_world(0.01, law=lambda N, D: 0.1 + 0.2 * N**-0.3 + 6 * D**-0.45))
    flat = resampled(loss_world(0.01, law=lambda N, D: 0.1 + 6 * N**-0.4 + 0.2 * D**-0.3))
    both = answers.answer(Ensemble((steep, flat), (0.5, 0.5)))
    assert both.probability == pytest.approx(0.5, abs=0.02)
    assert both.verdict == "cannot tell"
    assert both.laws == {"additive": 0.5}
    alone = answers.answer(single(steep))
    assert both.data.high - both.data.low > alone.data.high - alone.data.low


def test_laws_are_drawn_in_proportion_to_their_weights_however_many_refits_they_have():
    steep = resampled(loss_world(0.01, law=lambda N, D: 0.1 + 0.2 * N**-0.3 + 6 * D**-0.45), 20)
    flat = resampled(loss_world(0.01, law=lambda N, D: 0.1 + 6 * N**-0.4 + 0.2 * D**-0.3), 300)
    given = answers.answer(Ensemble((steep, flat), (0.9, 0.1)))
    assert given.probability == pytest.approx(0.9, abs=0.01)


def test_a_refused_fit_gives_no_probability():
    frame = loss_world(0.01)
    given = asked(frame[frame["N"].isin([9e3, 1.4e5])])
    assert given.verdict == "cannot tell"
    assert given.probability is None
    assert "fewer than 3 levels of an input (N)" in given.reasons
    assert given.next_cells == ()


def test_ties_count_half():
    draws = resampled(loss_world(0.01), 10)
    flat = dataclasses.replace(draws, theta=np.array([[np.log(0.3), -40, -40, 0.1, 0.1]]))
    given = answers.answer(single(flat))
    assert given.probability == 0.5


def test_objectives_without_delta_are_bootstrapped_too():
    data = fits.prepare(loss_world(0.02), "loss_best")
    draws = bootstrap(fits.fit(fits.load_law("additive"), data, Objective("log-mse")), 100)
    low, high = draws.intervals()["percentile"]["beta"]
    assert low < 0.45 < high
