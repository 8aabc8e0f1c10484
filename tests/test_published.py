"""Tables of public studies: their published fits are reproduced, or beaten on their own objective."""

from pathlib import Path

import numpy as np
import pytest

from scaling import fit as fits, table
from scaling.objective import Objective

FIXTURES = Path(__file__).parent / "fixtures"
REPEATED = {"N": "params", "D": "unique_tokens", "exposures": "tokens / unique_tokens", "loss": "val_loss"}
PUBLISHED = {"E": 1.8691, "A": 520.82, "B": 1487.6, "alpha": 0.35266, "beta": 0.35266, "R_D": 15.3878, "R_N": 5.30974}
"""Muennighoff et al. 2023, section 6 and appendix A; the last two are R_D* and R_N*."""


def muennighoff(where: str | None = None) -> fits.Fit:
    rows = table.read(FIXTURES / "muennighoff2023.csv", REPEATED, where)
    law = fits.load_law("repeated")
    return fits.fit(law, fits.prepare(rows, "loss", law.inputs))


def objective_of(found: fits.Fit, natural: dict[str, float]) -> float:
    """The objective at published numbers."""
    centre = found.data.centre
    coefficients = {"A": natural["alpha"] * centre["N"], "B": natural["beta"] * centre["D"]}
    theta = [np.log(natural["E"]), *(np.log(natural[name]) - shift for name, shift in coefficients.items())]
    theta += [natural["alpha"], natural["beta"], np.log(natural["R_D"]), np.log(natural["R_N"])]
    problem = fits.problem_of(found.law, found.data, found.how)
    rows = np.ones((1, found.data.rows))
    value = problem.value(np.array([theta]), rows, found.data.log_loss[None], found.how)[0]
    return float(value * found.how.scale(found.data.log_loss))


def test_the_published_numbers_of_repeated_data_are_beaten_on_their_own_objective():
    found = muennighoff()
    assert found.data.rows == 229
    assert found.certified
    assert found.objective < 0.7 * objective_of(found, PUBLISHED)


def test_the_published_half_life_of_repetition_is_reproduced():
    """On runs that neither over-fit badly nor repeat more than a hundred times, with all seven numbers left free."""
    found = muennighoff("tokens / unique_tokens <= 100 and val_loss < 3.7")
    assert found.certified
    assert found.parameters["R_D"] == pytest.approx(PUBLISHED["R_D"], rel=0.1)
    assert found.objective < objective_of(found, PUBLISHED)


NMT = FIXTURES / "alabdulmohsin2022_nmt.csv"
CURVES = ("6 Enc, 6 Dec", "28 Enc, 6 Dec", "6 Enc, 28 Dec", "Dec-only", "TEnc-LSTM")


@pytest.mark.parametrize("curve", CURVES)
def test_the_bounded_law_extrapolates_translation_better_than_a_power_law(curve):
    """What the study concludes, on its own split: all but the largest amount of data is fitted."""
    columns = {"D": "`Seen Examples`", "loss": "Loss"}
    rows = table.read(NMT, columns, f"Model == '{curve}' and Training == 1")
    end = table.read(NMT, columns, f"Model == '{curve}' and Training == 0").frame
    error = {}
    for name in ("power_d", "m4"):
        law = fits.load_law(name)
        found = fits.fit(law, fits.prepare(rows, "loss", law.inputs), Objective("log-mse"))
        assert found.certified
        error[name] = abs(float(np.log(found.predict({"D": end["D"].to_numpy(float)})[0] / end["loss"][0])))
    assert error["m4"] < error["power_d"]
    assert error["m4"] < 0.03
