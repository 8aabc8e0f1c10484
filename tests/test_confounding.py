"""What moves together in a sweep is said before it is paid for."""

import pytest

from scaling.confounding import correlations, warnings
from scaling.cost import Cost


def costs(*points: tuple[int, int, int]) -> dict[str, Cost]:
    return {
        str(index): Cost(
            parameters={"N": n}, share=1.0, D=d, episodes=1, updates=1, tokens_seen=t, exposures=1.0, C=1.0
        )
        for index, (n, d, t) in enumerate(points)
    }


def test_a_full_grid_confounds_nothing():
    names, found = correlations(costs(*((n, d, 100) for n in (10, 100) for d in (1000, 9000))))
    assert names == ["N", "D"]
    assert found[0, 1] == pytest.approx(0.0)
    assert warnings(names, found) == []


def test_epochs_tie_data_to_training():
    names, found = correlations(costs(*((n, d, 3 * d) for n in (10, 100) for d in (1000, 9000))))
    said = warnings(names, found)
    assert len(said) == 1
    assert "D and T move together (r = 1.00): what more data does" in said[0]
    assert "use train.budget updates" in said[0]


def test_equal_compute_ties_size_to_training():
    said = warnings(*correlations(costs(*((n, d, 10**6 // n) for n in (10, 100) for d in (1000, 9000)))))
    assert len(said) == 1
    assert "N and T move together (r = -1.00)" in said[0]


def test_a_sweep_along_one_axis_has_nothing_to_confound():
    names, found = correlations(costs((10, 5, 7), (100, 5, 7)))
    assert names == ["N"]
    assert warnings(names, found) == []
