"""Which laws survive, whether size matters, what to run next, power, optima at equal compute, profiles."""

import json

import numpy as np
import pandas as pd
import pytest

from scaling import design, fit as fits, grid, nulls, power as powers, selection, study as studies
from scaling.ensemble import average
from scaling.errors import UserError
from scaling.identity import check_read, run_id
from scaling.intervals import bootstrap
from scaling.isocompute import iso_compute
from scaling.objective import Objective
from scaling.profile import exponents, profile
from scaling.spec import DataSpec, ModelSpec, RunSpec, TrainSpec, to_dict
from scaling.table import Table

from conftest import loss_world, with_specs


def chosen(frame: pd.DataFrame) -> selection.Selection:
    return selection.select(selection.prepare_all(Table(frame), "loss_best"))


def hurts(N, D):
    return 0.15 + 2.0 * N**-0.4 + 3.0 * D**-0.45 + 5.0 * N**0.7 / D**1.2


def uneven(N, D):
    return 0.1 + 1.5 * N**-0.25 + 10 * D**-0.6


@pytest.fixture(scope="module")
def plain() -> selection.Selection:
    return chosen(loss_world(0.004, law=uneven))


def test_the_true_law_survives_and_simpler_wrong_ones_do_not(plain):
    alive = {c.fit.law.name for c in plain.survivors}
    assert "additive" in alive
    assert not {"constant", "power_n", "power_d", "kaplan"} & alive
    table = plain.frame().set_index("law")
    assert table.loc["additive", "log RMSE, largest D"] < 0.02 < table.loc["power_n", "log RMSE, largest D"]
    assert sum(c.weight for c in plain.candidates) == pytest.approx(1)
    assert all(c.weight == 0 for c in plain.candidates if not c.survives)
    words = selection.in_words(plain)
    assert "Worse beyond doubt" in words
    assert "Out: repeated: needs exposures" in words


def test_over_fitting_by_big_models_is_recognised():
    found = chosen(loss_world(0.004, law=hurts, seeds=3))
    alive = {c.fit.law.name for c in found.survivors}
    assert "additive" not in alive
    assert "bigger_hurts" in alive


def test_held_out_rows_are_not_fitted(plain):
    """Spoiling the largest D changes no prediction of it."""
    frame = loss_world(0.004)
    spoilt = frame.assign(loss_best=frame["loss_best"].where(frame["fraction"] < 1, frame["loss_best"] * 2))
    data, other = (selection.prepare_all(Table(f), "loss_best") for f in (frame, spoilt))
    hold = next(h for h in selection.holds_of(data) if h.name == "largest D")
    law = fits.load_law("additive")
    one, two = (selection._predict(fits.fit(law, d), hold) for d in (data, other))
    np.testing.assert_allclose(two - one, np.log(2), rtol=1e-9)


def test_a_table_with_data_alone_compares_the_laws_in_data():
    frame = loss_world(0.004, law=lambda N, D: 0.1 + 3 * D**-0.4).drop(columns=["N", "width", "depth"])
    found = chosen(frame.drop_duplicates("loss_best"))
    assert found.candidates[0].fit.law.name in ("power_d", "broken", "m4")
    assert "needs N" in found.failed["additive"]


def test_laws_that_need_more_levels_are_out_with_the_reason():
    found = chosen(loss_world(0.01).query("N < 3e4 and fraction < 0.2"))
    assert found.failed["additive"].startswith("fewer than 3 levels of an input (N)")
    assert [c.fit.law.name for c in found.candidates] == ["constant"]
    with pytest.raises(UserError, match="no law can be compared on this table"):
        chosen(loss_world(0.01).query("N < 1e4 and fraction < 0.1"))


def test_averaging_draws_from_every_survivor(plain):
    ensemble = average(plain, 50)
    assert {fit.law.name for fit in ensemble.fits} <= {c.fit.law.name for c in plain.survivors}
    assert sum(ensemble.weights) == pytest.approx(1)
    point = ensemble.estimate(np.array([5e4]), np.array([2e4]))[0]
    assert point == pytest.approx(uneven(5e4, 2e4), rel=0.01)


def size_tested(frame: pd.DataFrame, **options) -> nulls.NullTest:
    data = fits.prepare(frame, "loss_best")
    draws = bootstrap(fits.fit(fits.load_law("additive"), data), 200)
    return nulls.size_test(draws, data, Objective(), simulations=99, **options)


def test_size_that_matters_is_seen():
    found = size_tested(loss_world(0.01))
    assert found.matters
    assert not found.negligible
    assert found.p == pytest.approx(0.01)
    truth = np.log((0.15 + 2.0 * 9e3**-0.4 + 3.0 * 4.8e4**-0.45) / (0.15 + 2.0 * 1.4e5**-0.4 + 3.0 * 4.8e4**-0.45))
    assert found.effect == pytest.approx(truth, rel=0.25)


def test_size_that_does_nothing_is_negligible():
    found = size_tested(loss_world(0.01, seeds=6, law=lambda N, D: 0.15 + 3.0 * D**-0.45 + 0 * N))
    assert not found.matters
    assert found.negligible
    assert found.margin == pytest.approx(0.01, rel=0.3)
    assert not size_tested(loss_world(0.01), margin=1e-6).negligible


def test_holm_adjusts_as_by_hand():
    adjusted = nulls.holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert adjusted == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


def test_environments_are_answered_one_by_one():
    both = pd.concat([loss_world(0.01).assign(env="hopper"), loss_world(0.01, seed=1).assign(env="walker")])
    run = lambda rows: studies.study(rows, "additive", draws=50)  # noqa: E731
    found, adjusted = studies.studies(Table(both), "env", run)
    assert set(found) == set(adjusted) == {"hopper", "walker"}
    assert found["walker"].data.rows == 50
    with pytest.raises(UserError, match="no column 'environment'"):
        studies.studies(Table(both), "environment", run)


def test_the_runs_named_next_narrow_the_interval_that_was_asked_for():
    """Adding them shrinks the bootstrap spread of beta more than adding runs of the largest N and D."""
    frame = loss_world(0.02, seeds=2)
    fitted = fits.fit(fits.load_law("additive"), fits.prepare(frame, "loss_best"))
    cells = design.next_cells(fitted, 1.4e5, 4.8e4, 12, "beta")
    assert cells[-1].variance_left < cells[0].variance_left < 1
    chosen = pd.DataFrame([{**cell.settings, "N": cell.N, "D": cell.D} for cell in cells])
    corner = chosen.assign(N=1.4e5, D=4.8e4, width=64, fraction=1.0)

    def spread(more: pd.DataFrame) -> float:
        grown = pd.concat([frame, more.assign(seed=range(100, 112), depth=1, status="done")], ignore_index=True)
        grown["loss_best"] = (0.15 + 2.0 * grown["N"] ** -0.4 + 3.0 * grown["D"] ** -0.45) * np.exp(
            0.02 * np.random.default_rng(4).standard_normal(len(grown))
        )
        data = fits.prepare(grown.drop(columns=["fraction", "width", "depth"]), "loss_best")
        return float(np.std(bootstrap(fits.fit(fitted.law, data, Objective("log-mse")), 200).parameters["beta"]))

    assert spread(chosen) < spread(corner)


def test_nothing_else_can_be_narrowed():
    fitted = fits.fit(fits.load_law("additive"), fits.prepare(loss_world(0.02), "loss_best"))
    with pytest.raises(UserError, match="nothing called 'gamma' to narrow; known: verdict, data_gain"):
        design.next_cells(fitted, 1e5, 1e4, 1, "gamma")


def test_the_sweep_written_for_the_next_runs_is_read_back_and_new(tmp_path):
    frame = with_specs(loss_world(0.01), [1e-3]).assign(draw=lambda f: f["seed"])
    fitted = fits.fit(fits.load_law("additive"), fits.prepare(frame, "loss_best"))
    cells = design.next_cells(fitted, 1.4e5, 4.8e4, 4)
    path = tmp_path / "more.yaml"
    path.write_text(design.sweep_yaml(fitted, cells, "more"))
    sweep = grid.read(path)
    assert len(sweep.runs) == 4
    assert all(isinstance(run, RunSpec) and run.seed >= 2 and run.data.draw == run.seed for run in sweep.runs)
    assert sorted(run.model.width for run in sweep.runs) == sorted(cell.settings["width"] for cell in cells)
    assert len({run_id(run, "x") for run in sweep.runs}) == 4
    assert {run.train.learning_rate for run in sweep.runs} == {1e-3}
    check_read(sweep.named, sweep.runs)


def test_a_table_without_specs_has_no_sweep():
    fitted = fits.fit(fits.load_law("additive"), fits.prepare(loss_world(0.02), "loss_best"))
    with pytest.raises(UserError, match="holds no specs"):
        design.sweep_yaml(fitted, design.next_cells(fitted, 1e5, 1e4, 2), "x")


GRID = loss_world(0.0, seeds=1)[["N", "D", "fraction"]]


def test_power_grows_with_seeds_and_falls_with_noise():
    law = fits.load_law("additive")
    truth = powers.truth(law, {"E": 0.1, "A": 2.0, "B": 3.0, "alpha": 0.3, "beta": 0.4})

    def right(sd: float, repeats: tuple[int, ...]) -> list[float]:
        return [p.right for p in powers.power(GRID, law, truth, (sd, 0.0), repeats, worlds=10)]

    quiet, loud = right(0.002, (1,)), right(0.05, (1, 4))
    assert quiet[0] >= 0.9
    assert loud[0] < loud[1]
    assert loud[0] < 0.8


def test_power_needs_every_number_of_the_law():
    law = fits.load_law("additive")
    with pytest.raises(UserError, match="needs the numbers E, A, B, alpha, beta; not matched: alpha, gamma"):
        powers.truth(law, {"E": 0.1, "A": 2.0, "B": 3.0, "gamma": 0.3, "beta": 0.4})
    with pytest.raises(UserError, match="E must be a positive number: -1"):
        powers.truth(law, {"E": -1.0, "A": 2.0, "B": 3.0, "alpha": 0.3, "beta": 0.4})
    with pytest.raises(UserError, match="use --like"):
        powers.truth(fits.load_law("kaplan"), {})


def test_optima_at_equal_compute_follow_the_law_they_come_from():
    """For alpha = beta, N_opt is the square root of N D times a constant."""
    rows = [
        {"N": n, "D": c / n, "C": c} for c in np.geomspace(1e9, 1e13, 5) for n in np.sqrt(c) * np.geomspace(0.1, 10, 11)
    ]
    frame = pd.DataFrame(rows)
    frame["loss"] = (0.1 + 5 * frame["N"] ** -0.3 + 5 * frame["D"] ** -0.3) * np.exp(
        0.0005 * np.random.default_rng(0).standard_normal(len(frame))
    )
    found = iso_compute(fits.prepare(frame, "loss"))
    assert found.exponent == pytest.approx(0.5, abs=0.03)
    assert found.interval[0] < 0.5 < found.interval[1]
    np.testing.assert_allclose(found.optimum, np.sqrt(found.budget), rtol=0.3)
    assert (found.low <= found.optimum).all()
    assert (found.optimum <= found.high).all()


def test_a_grid_without_equal_compute_has_no_such_optima():
    with pytest.raises(UserError, match="optima at equal compute need 3"):
        iso_compute(fits.prepare(loss_world(0.01), "loss_best"))


def test_a_profile_is_lowest_at_the_fit_and_narrow_where_data_are_quiet():
    def width(noise: float) -> float:
        draws = bootstrap(fits.fit(fits.load_law("additive"), fits.prepare(loss_world(noise), "loss_best")), 200)
        assert exponents(draws.fit) == ["alpha", "beta"]
        found = profile(draws, "beta")
        best = found.value[np.argmin(found.objective)]
        step = np.diff(found.value)[0]
        assert best == pytest.approx(draws.fit.parameters["beta"], abs=1.01 * step)
        assert (found.objective >= draws.fit.objective * (1 - 1e-9)).all()
        return float(np.ptp(found.value[found.deviance < 4]))

    assert width(0.005) < 0.5 * width(0.03)


def test_a_study_carries_selection_variance_and_test():
    looked_at = studies.study(loss_world(0.004), draws=50)
    assert looked_at.selection is not None
    assert looked_at.fit.law.name in looked_at.answer.laws
    assert looked_at.variance.seed == pytest.approx(0.004, rel=0.4)
    assert looked_at.answer.size_test.matters
    table = looked_at.parameters().set_index("parameter")
    assert (table["low"] <= table["high"]).all()
    with pytest.raises(UserError, match="power_n takes N"):
        studies.study(loss_world(0.004), "power_n")
    with pytest.raises(UserError, match="needs both N and D to vary; D is missing"):
        studies.study(loss_world(0.004).drop(columns="D"))


def test_a_large_table_is_sampled_for_the_comparison_and_says_so(monkeypatch):
    monkeypatch.setattr(selection, "LARGEST", 40)
    data = chosen(loss_world(0.01)).candidates[0].fit.data
    assert 40 <= data.rows <= 42
    assert data.refused == {"not in the random sample that stands for a large table": 50 - data.rows}
    assert data.frame["N"].max() == 1.4e5
    assert data.frame["D"].max() == 4.8e4


@pytest.mark.parametrize("law", [None, "tied", "additive"])
def test_a_large_table_is_answered_from_the_rows_that_were_seen(monkeypatch, law):
    for module in (selection, studies):
        monkeypatch.setattr(module, "LARGEST", 30)
    looked_at = studies.study(loss_world(0.01), law, draws=20)
    rows = looked_at.data.rows
    assert rows == looked_at.fit.data.rows
    assert (rows == 50) == (law is not None)
    assert looked_at.answer.size_test is not None


def runs_in_transitions(rates: dict[int, float]) -> pd.DataFrame:
    """Runs on so many transitions, at three widths, with a learning rate for each width."""
    frame = loss_world(0.01)
    frame = frame[frame["width"].isin(rates)].assign(draw=lambda f: f["seed"], depth=1, kind="mambadm", context=20)
    specs = [
        RunSpec(
            model=ModelSpec(width=int(row.width), depth=1),
            data=DataSpec(transitions=int(row.D), draw=int(row.seed)),
            train=TrainSpec(learning_rate=rates[int(row.width)]),
            seed=int(row.seed),
        )
        for row in frame.itertuples()
    ]
    return frame.assign(spec=[json.dumps(to_dict(spec)) for spec in specs], dataset="digest").reset_index(drop=True)


def test_the_next_runs_get_the_transitions_and_the_tuned_rate_of_their_cell(tmp_path):
    frame = runs_in_transitions({16: 3e-3, 32: 2e-3, 64: 1e-3})
    fitted = fits.fit(fits.load_law("additive"), fits.prepare(frame, "loss_best", ("N", "D")))
    cells = design.next_cells(fitted, frame["N"].max(), frame["D"].max(), 4)
    path = tmp_path / "more.yaml"
    path.write_text(design.sweep_yaml(fitted, cells, "more"))
    for spec, cell in zip(grid.read(path).runs, cells, strict=True):
        assert spec.model.width == cell.settings["width"]
        assert spec.data.transitions == pytest.approx(cell.D, rel=0.01)
        assert spec.train.learning_rate == {16: 3e-3, 32: 2e-3, 64: 1e-3}[spec.model.width]


def test_next_runs_are_not_guessed_where_runs_of_one_model_differ(tmp_path):
    frame = runs_in_transitions({16: 3e-3, 32: 2e-3, 64: 1e-3})
    spec = json.loads(frame["spec"].iloc[0])
    spec["train"]["clip"] = 0.5
    frame.loc[0, "spec"] = json.dumps(spec)
    fitted = fits.fit(fits.load_law("additive"), fits.prepare(frame, "loss_best", ("N", "D")))
    cells = design.next_cells(fitted, frame["N"].max(), frame["D"].max(), 1)
    with pytest.raises(UserError, match=r"the runs also differ in train\.clip, .* keep one with --where"):
        design.sweep_yaml(fitted, cells, "more")
