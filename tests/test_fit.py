"""Laws, solver and certificate: derivatives, planted truth, relations, degenerate tables."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from scaling import fit as fits, law as laws, newton, plug
from scaling.errors import UserError
from scaling.spec import DataSpec, ModelSpec, RunSpec, TrainSpec, to_dict

from conftest import loss_world

LAWS = plug.names("laws")
TRUTH = {"E": 0.15, "A": 2.0, "B": 3.0, "alpha": 0.4, "beta": 0.45}


def fit(frame: pd.DataFrame, law: str = "additive", **options) -> fits.Fit:
    return fits.fit(fits.load_law(law), fits.prepare(frame, "loss_best"), **options)


@pytest.mark.parametrize("name", LAWS)
def test_derivatives_of_the_objective_agree_with_finite_differences(name):
    law, data = fits.load_law(name), fits.prepare(loss_world(0.02), "loss_best")
    problem = fits.problem_of(law, data, delta=0.02)
    generator = np.random.default_rng(0)
    theta = law.starts(5, data.log_loss, generator)
    weight = generator.integers(0, 3, (5, data.rows)).astype(float)
    gradient, hessian = problem.derivatives(theta, weight, 0.02)
    step = 1e-6
    for p in range(len(law.theta)):
        shift = np.zeros(len(law.theta))
        shift[p] = step
        up, down = theta + shift, theta - shift
        slope = (problem.objective(up, weight, 0.02) - problem.objective(down, weight, 0.02)) / (2 * step)
        np.testing.assert_allclose(gradient[:, p], slope, rtol=1e-4, atol=1e-4)
        curve = (problem.derivatives(up, weight, 0.02)[0] - problem.derivatives(down, weight, 0.02)[0]) / (2 * step)
        np.testing.assert_allclose(hessian[:, p], curve, rtol=1e-3, atol=1e-2 * np.abs(hessian).max())


@pytest.mark.parametrize("name", LAWS)
def test_a_planted_truth_without_noise_is_recovered(name):
    law = fits.load_law(name)

    def planted(N, D):
        value = TRUTH["E"] + 0 * N
        value = value + (TRUTH["A"] * N ** -TRUTH["alpha"] if "A" in law.coefficients else 0)
        return value + (TRUTH["B"] * D ** -TRUTH["beta"] if "B" in law.coefficients else 0)

    found = fit(loss_world(0.0, law=planted), name)
    for parameter, value in found.parameters.items():
        assert value == pytest.approx(TRUTH[parameter], rel=1e-6)
    assert found.certified
    assert found.flags == ()


def test_predictions_are_the_equation():
    found = fit(loss_world(0.01))
    p, n, d = found.parameters, np.array([1e4, 3e5]), np.array([2e3, 7e5])
    expected = p["E"] + p["A"] * n ** -p["alpha"] + p["B"] * d ** -p["beta"]
    np.testing.assert_allclose(found.predict({"N": n, "D": d}), expected, rtol=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_no_general_minimiser_finds_a_lower_objective(seed):
    frame = loss_world(0.03, seed=seed)
    found = fit(frame)
    x, d, y = np.log(frame["N"]), np.log(frame["D"]), np.log(frame["loss_best"])

    def objective(theta):
        e, a, b, alpha, beta = theta
        residual = np.abs(y - np.logaddexp(e, np.logaddexp(a - alpha * x, b - beta * d)))
        return np.where(residual <= 1e-3, residual**2 / 2, 1e-3 * (residual - 5e-4)).sum() / 1e-3

    generator = np.random.default_rng(seed)
    x, d, y = (np.asarray(values) for values in (x - x.mean(), d - d.mean(), y))
    starts = found.law.starts(12, y, generator)
    best = min(minimize(objective, start, method="Nelder-Mead", options={"maxiter": 1500}).fun for start in starts)
    assert found.objective <= best * 1e-3 * (1 + 1e-9)
    assert found.objective == pytest.approx(objective(found.theta) * 1e-3, rel=1e-9)


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
    problem = fits.problem_of(found.law, found.data, found.delta)
    gradient, hessian = problem.derivatives(found.theta[None], np.ones((1, found.data.rows)), found.delta)
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
    no_floor = loss_world(0.0, law=lambda N, D: 2 * N**-0.1 + 3 * D**-0.2)
    assert "term_vanishes:E" in flags_of(no_floor)
    harmful = loss_world(0.0, law=lambda N, D: 0.1 * N**0.2 + 3 * D**-0.4)
    assert "at_bound:alpha" in flags_of(harmful, "power_n")
    assert "fewer than 3 levels of an input (N)" in fit(two_sizes).refusal


def test_a_wrong_form_is_flagged_where_cells_repeat_and_the_true_one_is_not():
    def interacting(N, D):
        return 0.2 + 300 * N**-0.4 * D**-0.3

    assert "lack_of_fit" in flags_of(loss_world(0.004, law=interacting))
    assert "lack_of_fit" not in flags_of(loss_world(0.004, law=interacting, seeds=1))
    flagged = sum("lack_of_fit" in flags_of(loss_world(0.01, seed=seed)) for seed in range(10))
    assert flagged <= 1


def test_a_flat_stretch_of_minima_is_no_certificate():
    """The constant law on two far apart rows: any value between them is a median."""
    found = fit(loss_world(0.0, law=lambda N, D: np.where(D > 1e4, 0.2, 0.3))[:8], "constant")
    assert not found.certified
    assert "ill_conditioned" in found.flags
    assert fits.to_json(found)["hessian_condition"] is None


def test_unequal_draws_of_one_fraction_are_one_level():
    frame = loss_world(0.01)
    jitter = np.random.default_rng(0).uniform(0.7, 1.3, len(frame))
    two = frame.assign(D=frame["D"] * jitter)[frame["fraction"].isin([0.0625, 1.0])]
    assert "few_levels:D" in flags_of(two)


def with_specs(frame: pd.DataFrame, rates: list[float]) -> pd.DataFrame:
    """The frame with the specs that could have made it, the learning rates in turn."""
    specs = [
        RunSpec(
            model=ModelSpec(width=int(row.width), depth=1),
            data=DataSpec(fraction=row.fraction, draw=int(row.seed), path=f"copy{row.seed}.hdf5"),
            train=TrainSpec(learning_rate=rates[index % len(rates)]),
            seed=int(row.seed),
        )
        for index, row in enumerate(frame.itertuples())
    ]
    return frame.assign(spec=[json.dumps(to_dict(spec)) for spec in specs], dataset="digest")


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
        UserError, match=r"no 'aditive' in laws \(did you mean 'additive'\?\); known: additive, constant"
    ):
        fits.load_law("aditive")


def test_a_name_used_in_two_terms_is_one_parameter():
    tied = laws.PowerSum("tied", "", {"E": {}, "A": {"N": "alpha"}, "B": {"D": "alpha"}})
    assert tied.theta == ("log_E", "log_A", "log_B", "alpha")
    frame = loss_world(0.0, law=lambda N, D: 0.1 + 2 * N**-0.3 + 5 * D**-0.3)
    found = fits.fit(tied, fits.prepare(frame, "loss_best"))
    assert found.parameters == pytest.approx({"E": 0.1, "A": 2.0, "B": 5.0, "alpha": 0.3}, rel=1e-6)
