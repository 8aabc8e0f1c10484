"""Every law: its equation by hand, exact derivatives, planted truth."""

import itertools

import numpy as np
import pandas as pd
import pytest

from scaling import fit as fits, jet, law as laws, newton, plug
from scaling.formula import Formula
from scaling.objective import KINDS, Objective

LAWS = plug.names("laws")


def repeated(p, x):
    unique, passes = x["D"] * np.minimum(x["exposures"], 1), np.maximum(x["exposures"], 1)
    data = unique * (1 + p["R_D"] * (1 - np.exp(-(passes - 1) / p["R_D"])))
    g = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    optimal = g * (g * unique) ** (p["beta"] / p["alpha"])
    used = np.minimum(x["N"], optimal)
    size = used * (1 + p["R_N"] * (1 - np.exp(-(x["N"] / used - 1) / p["R_N"])))
    return p["E"] + p["A"] * size ** -p["alpha"] + p["B"] * data ** -p["beta"]


def m4(p, x):
    """Bisection of the defining equation, whose left side grows with L."""
    right = p["B"] * x["D"] ** -p["beta"]
    low, high = np.full(len(right), p["E"]), np.full(len(right), p["L_0"])
    for _ in range(200):
        middle = (low + high) / 2
        below = (middle - p["E"]) / (p["L_0"] - middle) ** p["gamma"] < right
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


BY_HAND = {
    "constant": (lambda p, x: p["E"] + 0 * x["N"], {"E": 0.3}),
    "power_n": (lambda p, x: p["E"] + p["A"] * x["N"] ** -p["alpha"], {"E": 0.2, "A": 5.0, "alpha": 0.3}),
    "power_d": (lambda p, x: p["E"] + p["B"] * x["D"] ** -p["beta"], {"E": 0.2, "B": 5.0, "beta": 0.3}),
    "additive": (
        lambda p, x: p["E"] + p["A"] * x["N"] ** -p["alpha"] + p["B"] * x["D"] ** -p["beta"],
        {"E": 0.15, "A": 8.0, "B": 20.0, "alpha": 0.4, "beta": 0.45},
    ),
    "tied": (
        lambda p, x: p["E"] + p["A"] * x["N"] ** -p["alpha"] + p["B"] * x["D"] ** -p["alpha"],
        {"E": 0.1, "A": 2.0, "B": 5.0, "alpha": 0.3},
    ),
    "width_depth_data": (
        lambda p, x: (
            p["E"]
            + p["A"] * x["width"] ** -p["alpha"]
            + p["C"] * x["depth"] ** -p["gamma"]
            + p["B"] * x["D"] ** -p["beta"]
        ),
        {"E": 0.15, "A": 1.5, "C": 0.1, "B": 9.0, "alpha": 0.7, "gamma": 0.9, "beta": 0.4},
    ),
    "bigger_hurts": (
        lambda p, x: (
            p["E"]
            + p["A"] * x["N"] ** -p["alpha"]
            + p["B"] * x["D"] ** -p["beta"]
            + p["c"] * x["N"] ** p["g"] * x["D"] ** -p["d"]
        ),
        {"E": 0.2, "A": 8.0, "B": 5.0, "c": 3.0, "alpha": 0.4, "beta": 0.35, "g": 0.6, "d": 1.0},
    ),
    "kaplan": (
        lambda p, x: ((p["N_c"] / x["N"]) ** (p["alpha_N"] / p["alpha_D"]) + p["D_c"] / x["D"]) ** p["alpha_D"],
        {"N_c": 3e3, "D_c": 2e3, "alpha_N": 0.3, "alpha_D": 0.2},
    ),
    "coupled": (
        lambda p, x: p["E"] + (p["A"] * x["N"] ** -p["alpha"] + p["B"] * x["D"] ** -p["beta"]) ** p["gamma"],
        {"E": 0.12, "A": 40.0, "B": 90.0, "alpha": 0.7, "beta": 0.8, "gamma": 0.5},
    ),
    "broken": (
        lambda p, x: (
            p["E"]
            + p["B"] * x["D"] ** -p["beta"] * (1 + (x["D"] / p["d_1"]) ** (1 / p["f_1"])) ** (-p["c_1"] * p["f_1"])
        ),
        {"E": 0.1, "B": 3.0, "beta": 0.15, "c_1": 0.6, "d_1": 3e4, "f_1": 0.4},
    ),
    "m4": (m4, {"E": 0.1, "L_0": 0.95, "B": 30.0, "beta": 0.45, "gamma": 0.6}),
    "repeated": (
        repeated,
        {"E": 0.1, "A": 9.0, "B": 12.0, "alpha": 0.35, "beta": 0.3, "R_D": 8.0, "R_N": 5.0},
    ),
}


@pytest.fixture(scope="module")
def inputs() -> pd.DataFrame:
    """A grid on which every law can be told: sizes from widths and depths, data, and passes over it."""
    fractions = np.geomspace(1e3, 1e6, 9)
    grid = pd.DataFrame(
        list(itertools.product((16, 32, 64, 128), (1, 3, 8), fractions)), columns=["width", "depth", "D"]
    )
    grid["N"] = 4.0 * grid["depth"] * grid["width"] ** 2
    grid["exposures"] = np.tile([0.5, 2.0, 6.0, 20.0, 60.0], len(grid))[: len(grid)]
    return grid.astype(float)


def columns(grid: pd.DataFrame) -> tuple[str, ...]:
    return tuple(grid.columns)


def test_there_is_an_equation_by_hand_for_every_law():
    assert sorted(BY_HAND) == LAWS


@pytest.mark.parametrize("name", LAWS)
def test_a_planted_truth_without_noise_is_recovered(name, inputs):
    equation, truth = BY_HAND[name]
    table = inputs.assign(loss=equation(truth, {x: inputs[x].to_numpy() for x in inputs}))
    found = fits.fit(fits.load_law(name), fits.prepare(table, "loss", columns(inputs)))
    assert found.parameters == pytest.approx(truth, rel=1e-6)
    assert found.certified
    predicted = found.predict({x: inputs[x].to_numpy() for x in inputs})
    np.testing.assert_allclose(predicted, table["loss"], rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAWS)
def test_derivatives_of_the_objective_agree_with_finite_differences(name, kind, inputs):
    law, generator = fits.load_law(name), np.random.default_rng(0)
    table = inputs.assign(loss=0.2 + 5 * inputs["N"] ** -0.4 + 9 * inputs["D"] ** -0.5)
    data = fits.prepare(table, "loss", columns(inputs))
    problem = fits.problem_of(law, data, Objective(kind, 0.05))
    theta = laws.starts(law, 5, data.log_loss, generator)
    weight = generator.integers(0, 3, (5, data.rows)).astype(float)
    y = data.log_loss[None]
    gradient, hessian = problem.derivatives(theta, weight, y, problem.objective)
    step = 1e-6
    for place in range(theta.shape[1]):
        shift = step * np.eye(theta.shape[1])[place]
        up, down = (problem.value(theta + s * shift, weight, y, problem.objective) for s in (1, -1))
        np.testing.assert_allclose(
            gradient[:, place], (up - down) / (2 * step), rtol=1e-4, atol=1e-6 * np.abs(gradient).max()
        )
        up, down = (problem.derivatives(theta + s * shift, weight, y, problem.objective)[0] for s in (1, -1))
        np.testing.assert_allclose(
            hessian[:, place], (up - down) / (2 * step), rtol=1e-4, atol=1e-6 * np.abs(hessian).max()
        )


def test_the_fast_sum_of_powers_agrees_with_the_formula_in_values_and_derivatives(inputs):
    """The twin is the law written out and differentiated by the chain rule."""
    fast = fits.load_law("bigger_hurts")

    def plain(p, x):
        overfit = p["log_c"] + p["g"] * x["N"] - p["d"] * x["D"]
        terms = (p["log_A"] - p["alpha"] * x["N"], p["log_B"] - p["beta"] * x["D"], overfit)
        total = p["log_E"]
        for term in terms:
            total = jet.logaddexp(total, term)
        return total

    slow = Formula("plain", "", ("N", "D"), fast.parameters, plain, lambda p, centre: p)
    table = inputs.assign(loss=0.2 + 5 * inputs["N"] ** -0.4)
    data = fits.prepare(table, "loss", columns(inputs))
    theta = laws.starts(fast, 7, data.log_loss, np.random.default_rng(1))
    weights = np.random.default_rng(2).normal(size=(2, 7, data.rows))
    one, other = (law.bind(data.log_x, data.centre, data.rows) for law in (fast, slow))
    np.testing.assert_allclose(one.value(theta), other.value(theta), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(one.expand(theta).gradient, other.expand(theta).gradient, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(
        one.expand(theta).contract(*weights), other.expand(theta).contract(*weights), rtol=1e-9, atol=1e-9
    )


def test_without_repetition_and_below_the_optimal_size_the_repeated_law_is_the_additive_one(inputs):
    truth = BY_HAND["repeated"][1]
    once = inputs[["N", "D"]].assign(N=10.0, exposures=1.0)
    plain = BY_HAND["additive"][0](truth, once)
    np.testing.assert_allclose(repeated(truth, once), plain, rtol=1e-12)
    table = inputs.assign(loss=repeated(truth, inputs))
    found = fits.fit(fits.load_law("repeated"), fits.prepare(table, "loss", columns(inputs)))
    np.testing.assert_allclose(found.predict({x: once[x].to_numpy() for x in once}), plain, rtol=1e-5)


@pytest.mark.parametrize("name", LAWS)
def test_predictions_do_not_depend_on_where_inputs_are_centred(name, inputs):
    """Natural parameters are what the equation by hand takes, whatever table they came from."""
    equation, _ = BY_HAND[name]
    law = fits.load_law(name)
    table = inputs.assign(loss=0.3 + inputs["D"] ** -0.3)
    data = fits.prepare(table, "loss", columns(inputs))
    theta = laws.starts(law, 3, data.log_loss, np.random.default_rng(3))
    surface = law.bind(data.log_x, data.centre, data.rows)
    for row in range(3):
        natural = law.natural(theta[row], data.centre)
        by_hand = equation(natural, {x: inputs[x].to_numpy() for x in inputs})
        np.testing.assert_allclose(np.exp(surface.value(theta[row : row + 1])[0]), by_hand, rtol=1e-7)


def test_a_fixed_parameter_stays_and_the_rest_is_refitted(inputs):
    equation, truth = BY_HAND["additive"]
    table = inputs.assign(loss=equation(truth, inputs))
    data = fits.prepare(table, "loss", columns(inputs))
    found = fits.fit(fits.load_law("additive"), data)
    problem = fits.problem_of(found.law, data, found.how)
    start = found.theta.copy()
    start[3] = 0.5
    held = newton.Problem(
        problem.surface, problem.log_loss, problem.objective, problem.low, problem.high, problem.summed, (3,)
    )
    moved = newton.solve(held, start[None], np.ones((1, data.rows)))
    assert moved.theta[0, 3] == 0.5
    assert moved.gradient_norm[0] <= newton.TOLERANCE
    assert moved.objective[0] > 1e-6 > found.objective
