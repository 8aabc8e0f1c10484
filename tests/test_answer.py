"""Bootstrap, extrapolation and the verdict on worlds whose answer is known."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from scaling import answer as answers, fit as fits
from scaling.intervals import Bootstrap, bootstrap, extrapolate, percentile
from scaling.study import study

from conftest import loss_world


def resampled(frame: pd.DataFrame, draws: int = 200, law: str = "additive") -> Bootstrap:
    return bootstrap(fits.fit(fits.load_law(law), fits.prepare(frame, "loss_best")), draws)


def test_refits_sit_at_their_own_optimum():
    draws = resampled(loss_world(0.02), draws=20)
    fitted = draws.fit
    cells = fitted.data.cell.max() + 1
    times = np.random.default_rng(0).multinomial(cells, np.full(cells, 1 / cells), size=20)
    assert draws.failures == 0
    problem = fits.problem_of(fitted.law, fitted.data, fitted.delta)
    gradient, _ = problem.derivatives(draws.theta, times[:, fitted.data.cell].astype(float), fitted.delta)
    assert np.abs(gradient).max() / fitted.data.rows < 1e-6


def test_the_same_seed_gives_the_same_draws():
    frame = loss_world(0.02)
    np.testing.assert_array_equal(resampled(frame, 30).theta, resampled(frame, 30).theta)


def test_intervals_hold_the_truth_and_widen_with_noise():
    quiet, loud = (resampled(loss_world(noise)).parameters["beta"] for noise in (0.005, 0.03))
    (low, high), (low_loud, high_loud) = percentile(quiet), percentile(loud)
    assert low < 0.45 < high
    assert high_loud - low_loud > 2 * (high - low)


def test_runs_of_a_cell_are_drawn_together():
    """Doubling every run changes nothing when cells are the unit; it would narrow intervals of single runs."""
    frame = loss_world(0.02, seeds=1)
    twice = pd.concat([frame, frame.assign(seed=1)], ignore_index=True)
    np.testing.assert_allclose(
        np.std(resampled(frame).parameters["beta"]), np.std(resampled(twice).parameters["beta"]), rtol=1e-4
    )


def test_extrapolation_errs_little_for_the_true_law_and_much_for_one_without_data():
    frame = loss_world(0.003)
    true = resampled(frame, 10).fit
    wrong = fits.fit(fits.load_law("power_n"), true.data)
    for fitted, low, high in ((true, 0, 0.01), (wrong, 0.05, 1)):
        found = extrapolate(fitted, "D")
        assert found.rows == 10
        assert low <= found.log_rmse < high
    assert extrapolate(wrong, "D").bias < 0


def gains_by_hand(p: dict[str, float], n: float, d: float) -> tuple[float, float]:
    def loss(n, d):
        return p["E"] + p["A"] * n ** -p["alpha"] + p["B"] * d ** -p["beta"]

    return 1 - loss(n, 2 * d) / loss(n, d), 1 - loss(2 * n, d) / loss(n, d)


def test_the_verdict_is_data_where_data_pays_and_model_where_the_model_pays():
    data_pays = loss_world(0.01, law=lambda N, D: 0.1 + 0.2 * N**-0.3 + 6 * D**-0.45)
    model_pays = loss_world(0.01, law=lambda N, D: 0.1 + 6 * N**-0.4 + 0.2 * D**-0.3)
    given = answers.answer(resampled(data_pays))
    assert given.verdict == "more data"
    assert given.probability > 0.95
    truth = gains_by_hand({"E": 0.1, "A": 0.2, "B": 6, "alpha": 0.3, "beta": 0.45}, 1.4e5, 4.8e4)
    assert given.data.low < truth[0] < given.data.high
    assert (given.N, given.D) == (1.4e5, 4.8e4)
    opposite = answers.answer(resampled(model_pays))
    assert opposite.verdict == "a bigger model"
    assert opposite.probability < 0.05
    truth = gains_by_hand({"E": 0.1, "A": 6, "B": 0.2, "alpha": 0.4, "beta": 0.3}, 1.4e5, 4.8e4)
    assert opposite.model.low < truth[1] < opposite.model.high
    assert opposite.next_cells == ()


def test_where_both_pay_alike_it_cannot_be_told_and_cells_are_named():
    even = loss_world(0.02, law=lambda N, D: 0.1 + N**-0.25 + (D * 1.4e5 / 4.8e4) ** -0.25)
    given = answers.answer(resampled(even))
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


def test_a_refused_fit_gives_no_probability():
    frame = loss_world(0.01)
    given = answers.answer(resampled(frame[frame["N"].isin([9e3, 1.4e5])]))
    assert given.verdict == "cannot tell"
    assert given.probability is None
    assert "fewer than 3 levels of an input (N)" in given.reasons
    assert given.next_cells == ()


def test_a_law_without_data_cannot_answer():
    with pytest.raises(ValueError, match="power_n"):
        answers.answer(resampled(loss_world(0.01), 10, "power_n"))


def test_ties_count_half():
    draws = resampled(loss_world(0.0, law=lambda N, D: 0.3 + 0 * N), 10)
    same = dataclasses.replace(draws, theta=np.repeat(draws.fit.theta[None] * [1, 0, 0, 0, 0], 4, axis=0))
    by_data, by_model = answers.gains(same, 1e5, 1e4)
    assert (by_data == by_model).all()


def test_study_compares_all_laws_and_prefers_the_true_one_out_of_sample():
    looked_at = study(loss_world(0.004), draws=50)
    table = looked_at.laws().set_index("law")
    errors = table["log RMSE, largest D held out"]
    assert set(table.index) == {"constant", "power_n", "power_d", "additive"}
    assert errors.idxmin() == "additive"
    parameters = looked_at.parameters().set_index("parameter")
    assert (parameters["low"] <= parameters["estimate"]).all()
    assert (parameters["estimate"] <= parameters["high"]).all()
