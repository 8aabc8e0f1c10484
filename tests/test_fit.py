"""Laws, solver and certificate: derivatives, planted truth, relations, degenerate tables."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares, minimize

from scaling import fit as fits, law as laws, newton
from scaling.errors import UserError
from scaling.objective import Objective

from conftest import loss_world, with_specs

TRUTH = {"E": 0.15, "A": 2.0, "B": 3.0, "alpha": 0.4, "beta": 0.45}


def fit(frame: pd.DataFrame, law: str = "additive", **options) -> fits.Fit:
    return fits.fit(fits.load_law(law), fits.prepare(frame, "loss_best"), **options)


def test_predictions_are_the_equation():
    found = fit(loss_world(0.01))
    p, n, d = found.parameters, np.array([1e4, 3e5]), np.array([2e3, 7e5])
    expected = p["E"] + p["A"] * n ** -p["alpha"] + p["B"] * d ** -p["beta"]
    np.testing.assert_allclose(found.predict({"N": n, "D": d}), expected, rtol=1e-10)


def scipy_optimum(found: fits.Fit, starts: int) -> float:
    """The lowest objective that SciPy's trust-exact reaches from random starts, with the same derivatives."""
    problem = fits.problem_of(found.law, found.data, found.how)
    weight, y = np.ones((1, found.data.rows)), found.data.log_loss[None]

    def value(theta):
        return float(problem.value(theta[None], weight, y, found.how)[0])

    def derivatives(theta, which):
        return problem.derivatives(theta[None], weight, y, found.how)[which][0]

    best = np.inf
    with np.errstate(all="ignore"):
        for start in laws.starts(found.law, starts, found.data.log_loss, np.random.default_rng(9)):
            done = minimize(
                value, start, jac=lambda t: derivatives(t, 0), hess=lambda t: derivatives(t, 1), method="trust-exact"
            )
            best = min(best, done.fun)
    return best * found.how.scale(found.data.log_loss)


@pytest.mark.parametrize("noise", [0.003, 0.02, 0.1])
@pytest.mark.parametrize("name", ["additive", "tied"])
def test_no_general_minimiser_finds_a_lower_objective(name, noise):
    found = fit(loss_world(noise, seed=3), name)
    assert found.certified
    assert found.objective <= scipy_optimum(found, 12) * (1 + 1e-9)


def test_the_objective_is_the_sum_of_hubers_of_log_residuals():
    found = fit(loss_world(0.02))
    frame = found.data.frame
    predicted = found.predict({name: frame[name].to_numpy() for name in ("N", "D")})
    residual = np.abs(np.log(frame["loss_best"]) - np.log(predicted))
    by_hand = np.where(residual <= 1e-3, residual**2 / 2, 1e-3 * (residual - 5e-4)).sum()
    assert found.objective == pytest.approx(by_hand, rel=1e-9)


def test_least_squares_agree_with_scipy():
    frame = loss_world(0.05)
    data = fits.prepare(frame, "loss_best")
    for kind, start in (("log-mse", None), ("mse", None)):
        found = fits.fit(fits.load_law("additive"), data, Objective(kind))

        def residual(p, kind=kind):
            predicted = p[0] + p[1] * (frame["N"] / 1e4) ** -p[3] + p[2] * (frame["D"] / 1e4) ** -p[4]
            difference = np.log(predicted / frame["loss_best"]) if kind == "log-mse" else predicted - frame["loss_best"]
            return difference.to_numpy()

        start = np.array([0.15, 0.05, 0.05, 0.4, 0.45])
        scipy = least_squares(residual, start, xtol=1e-15, ftol=1e-15, gtol=1e-15, bounds=([0] * 3 + [-4] * 2, 20))
        assert found.certified
        assert found.objective == pytest.approx(scipy.cost, rel=1e-8)


def test_a_term_that_the_data_drive_to_zero_is_zero_and_named():
    found = fit(loss_world(0.0, law=lambda N, D: 2 * N**-0.1 + 3 * D**-0.2))
    assert found.parameters["E"] < 1e-6
    assert "term_vanishes:E" in found.flags
    assert found.certified
    assert found.parameters["alpha"] == pytest.approx(0.1, rel=1e-6)


def test_a_million_rows_are_fitted_with_a_certificate():
    generator = np.random.default_rng(0)
    rows = 1_000_000
    frame = pd.DataFrame({"N": generator.uniform(9, 14, rows), "D": generator.uniform(8, 13, rows)}).apply(np.exp)
    clean = 0.15 + 2.0 * frame["N"] ** -0.4 + 3.0 * frame["D"] ** -0.45
    frame["loss_best"] = clean * np.exp(0.05 * generator.standard_normal(rows))
    found = fit(frame)
    assert found.certified
    assert found.parameters == pytest.approx(TRUTH, rel=0.05)


def test_the_order_of_rows_does_not_matter():
    frame = loss_world(0.02)
    shuffled = frame.sample(frac=1, random_state=1)
    one, other = fit(frame), fit(shuffled)
    assert one.objective == pytest.approx(other.objective, rel=1e-9)
    assert list(one.parameters.values()) == pytest.approx(list(other.parameters.values()), rel=1e-5)


def test_a_change_of_unit_moves_one_coefficient_only():
    frame = loss_world(0.0)
    before, after = fit(frame).parameters, fit(frame.assign(D=frame["D"] * 1000)).parameters
    assert after["B"] == pytest.approx(before["B"] * 1000 ** before["beta"], rel=1e-5)
    for name in ("E", "A", "alpha", "beta"):
        assert after[name] == pytest.approx(before[name], rel=1e-5)


def test_the_gradient_vanishes_at_the_certified_optimum():
    found = fit(loss_world(0.03))
    problem = fits.problem_of(found.law, found.data, found.how)
    ones = np.ones((1, found.data.rows))
    gradient, hessian = problem.derivatives(found.theta[None], ones, found.data.log_loss[None], found.how)
    assert found.certified
    assert np.abs(gradient).max() / found.data.rows <= newton.TOLERANCE
    assert np.linalg.eigvalsh(hessian[0]).min() > 0
    assert found.agree >= 2


def test_one_wild_row_hardly_moves_a_robust_fit():
    frame = loss_world(0.005)
    wild = frame.copy()
    wild.loc[7, "loss_best"] *= 3
    assert fit(wild).parameters["beta"] == pytest.approx(fit(frame).parameters["beta"], rel=0.05)


def flags_of(frame: pd.DataFrame, law: str = "additive") -> set[str]:
    return set(fit(frame, law).flags)


def test_degenerate_tables_are_flagged_by_name():
    frame = loss_world(0.01)
    two_sizes = frame[frame["N"].isin([9e3, 1.4e5])]
    assert "few_levels:N" in flags_of(two_sizes)
    diagonal = frame[(frame["N"] / 9e3).rank(method="dense") == (frame["D"] / 3e3).rank(method="dense")]
    assert "collinear:N,D" in flags_of(diagonal)
    harmful = loss_world(0.0, law=lambda N, D: 0.1 * N**0.2 + 3 * D**-0.4)
    assert "wrong_sign:alpha" in flags_of(harmful, "power_n")
    touching = loss_world(0.0, law=lambda N, D: 0.2 + (N < 1e4) * 0.1 + 3 * D**-0.4)
    assert {"steep:alpha", "at_bound:alpha"} & flags_of(touching)
    assert "many_parameters" in flags_of(frame[frame["seed"] == 0][::3])
    assert "fewer than 3 levels of an input (N)" in fit(two_sizes).refusal


def test_a_wrong_form_is_flagged_where_cells_repeat_and_the_true_one_is_not():
    def interacting(N, D):
        return 0.2 + 300 * N**-0.4 * D**-0.3

    assert "lack_of_fit" in flags_of(loss_world(0.004, law=interacting))
    assert "lack_of_fit" not in flags_of(loss_world(0.004, law=interacting, seeds=1))
    flagged = sum("lack_of_fit" in flags_of(loss_world(0.01, seed=seed)) for seed in range(10))
    assert flagged <= 1


def test_a_flat_stretch_of_minima_is_no_certificate():
    """The constant law on two far apart values: any number between them is a median."""
    found = fit(loss_world(0.0, law=lambda N, D: np.where(D > 1e4, 0.2, 0.3))[:8], "constant")
    assert not found.certified
    assert "ill_conditioned" in found.flags
    assert found.hessian_condition == np.inf


def test_unequal_draws_of_one_fraction_are_one_level():
    frame = loss_world(0.01)
    jitter = np.random.default_rng(0).uniform(0.7, 1.3, len(frame))
    two = frame.assign(D=frame["D"] * jitter)[frame["fraction"].isin([0.0625, 1.0])]
    assert "few_levels:D" in flags_of(two)


def test_a_cell_is_all_that_the_spec_says_but_seed_draw_and_path():
    frame = with_specs(loss_world(0.01, seeds=4), [1e-3])
    data = fits.prepare(frame, "loss_best")
    assert np.bincount(data.cell).tolist() == [4] * 25
    assert not [flag for flag in flags_of(frame) if flag.startswith("pooled")]


def test_runs_of_different_learning_rates_are_not_taken_for_repetitions():
    frame = with_specs(loss_world(0.01, seeds=4), [1e-3, 2e-3])
    data = fits.prepare(frame, "loss_best")
    assert np.bincount(data.cell).tolist() == [2] * 50
    assert "pooled:train.learning_rate" in flags_of(frame)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda f: f.assign(loss_best=f["loss_best"].where(f.index != 4, -1.0)),
            "column 'loss_best' must be positive .* row 4 holds",
        ),
        (lambda f: f.assign(D=f["D"].where(f.index != 2)), "column 'D' must be positive"),
        (lambda f: f.assign(N=f["N"].astype(str).where(f.index != 3, "many")), "row 3 holds 'many'"),
        (lambda f: f.drop(columns="N"), "no column 'N'; it has D, width"),
        (lambda f: f[:1], r"1 usable row\(s\)"),
        (lambda f: f.assign(status="failed"), r"0 usable row\(s\)"),
        (lambda f: f[:4], "law additive has 5 parameters, the table 4 usable rows"),
        (lambda f: f.assign(N=1e5, run=range(50)), "column 'N' is 100000 in every row; law additive needs it to vary"),
        (lambda f: f.assign(loss_best=0.5), "column 'loss_best' is 0.5 in every row"),
        (lambda f: pd.concat([f, f[3:4]], ignore_index=True), "rows 3 and 50 are the same run"),
    ],
)
def test_a_table_that_cannot_be_fitted_is_refused(change, said):
    with pytest.raises(UserError, match=said):
        fit(change(loss_world(0.01)))


def test_failed_runs_are_left_out_and_counted():
    frame = loss_world(0.0)
    frame.loc[3, ["status", "loss_best"]] = ["failed", np.nan]
    found = fit(frame)
    assert dict(found.data.refused) == {"failed run": 1}
    assert found.parameters["beta"] == pytest.approx(0.45, rel=1e-6)


def test_an_unknown_law_lists_those_that_exist():
    with pytest.raises(
        UserError, match=r"no 'aditive' in laws \(did you mean 'additive'\?\); known: additive, bigger_hurts"
    ):
        fits.load_law("aditive")
