"""Robust statistics against rliable, by hand and slowly; paired differences; intervals that cover."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from rliable import metrics

from scaling import robust
from scaling.errors import UserError
from scaling.paired import difference

THRESHOLDS = np.array([0.0, 20.0, 40.0, 80.0, 160.0])


def matrices() -> tuple[np.ndarray, np.ndarray]:
    """Two matrices (run, task) with ties, of unequal numbers of runs."""
    generator = np.random.default_rng(0)
    return generator.gamma(2.0, 30.0, (7, 3)).round(1), generator.gamma(2.0, 25.0, (5, 3)).round(0)


def profile(scores: np.ndarray) -> np.ndarray:
    return robust.profile(scores, THRESHOLDS)


X, Y = matrices()

RLIABLE = {
    "iqm": (robust.interquartile_mean, (X,), 37.73636363636364, 28.03159090909091, 53.3275),
    "mean": (robust.mean, (X,), 44.89523809523809, 34.15797619047619, 57.05595238095238),
    "improvement": (
        robust.probability_of_improvement,
        (X, Y),
        0.2857142857142857,
        0.10428571428571441,
        0.4857142857142857,
    ),
    "profile": (
        profile,
        (X,),
        [1.0, 0.8571428571428571, 0.42857142857142855, 0.14285714285714285, 0.0],
        [1.0, 0.7142857142857143, 0.23809523809523808, 0.047619047619047616, 0.0],
        [1.0, 1.0, 0.6190476190476191, 0.2857142857142857, 0.0],
    ),
}
"""What rliable 1.2 gives on these matrices after np.random.seed(1), 300 resamples, with arch 7.2 and NumPy 2.4."""


@pytest.mark.parametrize("name", RLIABLE)
def test_intervals_equal_those_of_rliable_after_the_same_seed(name):
    statistic, scores, value, low, high = RLIABLE[name]
    found = robust.bootstrap(statistic, *scores, generator=np.random.RandomState(1), draws=300)
    np.testing.assert_allclose(found.value, value, rtol=1e-12)
    np.testing.assert_allclose(found.low, low, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found.high, high, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("runs", [1, 2, 3, 4, 5, 7, 16, 33])
@pytest.mark.parametrize("tasks", [1, 3])
def test_point_estimates_equal_those_of_rliable(runs, tasks):
    generator = np.random.default_rng(runs + 100 * tasks)
    x, y = generator.normal(size=(runs, tasks)).round(1), generator.normal(size=(4, tasks)).round(1)
    np.testing.assert_allclose(robust.interquartile_mean(x), metrics.aggregate_iqm(x), rtol=1e-12)
    np.testing.assert_allclose(robust.mean(x), metrics.aggregate_mean(x), rtol=1e-12)
    np.testing.assert_allclose(
        robust.probability_of_improvement(x, y), metrics.probability_of_improvement(x, y), rtol=1e-12
    )


@pytest.mark.parametrize("make", [np.random.RandomState, np.random.default_rng])
@pytest.mark.parametrize("name", RLIABLE)
def test_all_resamples_at_once_give_what_one_after_the_other_gives(name, make):
    statistic, scores, *_ = RLIABLE[name]
    fast = robust.bootstrap(statistic, *scores, generator=make(3), draws=50)
    slow = robust.bootstrap_ref(statistic, *scores, generator=make(3), draws=50)
    for part in ("value", "low", "high"):
        np.testing.assert_allclose(getattr(fast, part), getattr(slow, part), rtol=1e-12, atol=1e-15)


def test_blocks_change_nothing(monkeypatch):
    whole = robust.bootstrap(robust.probability_of_improvement, X, Y, generator=np.random.default_rng(0), draws=40)
    monkeypatch.setattr(robust, "BLOCK", 100)
    pieces = robust.bootstrap(robust.probability_of_improvement, X, Y, generator=np.random.default_rng(0), draws=40)
    assert (whole.low, whole.high) == (pieces.low, pieces.high)


def test_every_task_is_resampled_for_itself():
    """Runs of one row are not kept together: a matrix of equal rows but for a task's own order gives the same draws."""
    drawn = robust.indices([np.zeros((6, 2))], np.random.default_rng(0), 200)[0]
    assert drawn.shape == (200, 6, 2)
    assert (drawn[..., 0] != drawn[..., 1]).mean() > 0.7
    assert set(np.unique(drawn)) == set(range(6))


@pytest.mark.parametrize(
    ("scores", "middle"),
    [
        ([[1.0], [2.0], [3.0], [100.0]], 2.5),
        ([[1.0], [2.0], [3.0]], 2.0),
        ([[1.0, 2.0], [3.0, 4.0]], 2.5),
        ([[0.0], [0.0], [1.0], [2.0], [3.0], [4.0], [50.0], [99.0]], 2.5),
    ],
)
def test_the_middle_half_is_averaged(scores, middle):
    assert robust.interquartile_mean(np.array(scores)) == pytest.approx(middle)


def test_an_outlier_moves_the_mean_and_not_the_interquartile_mean():
    calm = np.arange(8.0)[:, None]
    wild = np.where(calm == 7, 1e6, calm)
    assert robust.interquartile_mean(wild) == robust.interquartile_mean(calm)
    assert robust.mean(wild) > 1e5


def test_ties_count_half_and_tasks_count_alike():
    x, y = np.array([[1.0, 5.0], [1.0, 5.0]]), np.array([[1.0, 9.0]])
    assert robust.probability_of_improvement(x, y) == pytest.approx((0.5 + 0.0) / 2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=7), st.lists(st.integers(0, 5), min_size=1, max_size=7))
def test_two_sides_improve_on_each_other_with_probabilities_that_add_to_one(one, other):
    x, y = (np.array(side, float)[:, None] for side in (one, other))
    there, back = robust.probability_of_improvement(x, y), robust.probability_of_improvement(y, x)
    assert there + back == pytest.approx(1)
    above = np.mean([(a > b) + (a == b) / 2 for a in one for b in other])
    assert there == pytest.approx(above)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=9), st.randoms(use_true_random=False))
def test_order_of_runs_does_not_matter_and_units_scale(values, shuffler):
    shuffled = list(values)
    shuffler.shuffle(shuffled)
    x, again = np.array(values)[:, None], np.array(shuffled)[:, None]
    for statistic in (robust.mean, robust.interquartile_mean):
        np.testing.assert_allclose(statistic(again), statistic(x), atol=1e-12)
        np.testing.assert_allclose(statistic(3 * x + 1), 3 * statistic(x) + 1, atol=1e-9)


def test_a_profile_falls_from_all_to_none_and_counts_strictly_above():
    shape = robust.profile(np.array([[1.0], [2.0], [2.0], [5.0]]), np.array([0.0, 1.0, 2.0, 4.9, 5.0]))
    np.testing.assert_allclose(shape, [1.0, 0.75, 0.25, 0.25, 0.0])
    assert (np.diff(robust.profile(X, np.linspace(0, 200, 50))) <= 0).all()


def coverage(runs: int, statistic: robust.Statistic, truth: float, worlds: int = 300) -> float:
    generator = np.random.default_rng(runs)
    held = 0
    for _ in range(worlds):
        found = robust.bootstrap(statistic, generator.normal(size=(runs, 1)), generator=generator, draws=200)
        held += bool(found.low <= truth <= found.high)
    return held / worlds


def test_intervals_of_many_runs_hold_the_truth_and_of_few_runs_too_rarely():
    """Two runs: the interval is the range of both, which holds the median in one world of two."""
    assert coverage(30, robust.mean, 0.0) > 0.9
    assert coverage(2, robust.mean, 0.0) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(
    ("scores", "draws", "said"),
    [
        (np.zeros(3), 10, r"at least one run and one task: shape \(3,\)"),
        (np.zeros((0, 2)), 10, r"at least one run and one task: shape \(0, 2\)"),
        (np.array([[1.0], [np.nan]]), 10, "finite numbers: nan"),
        (np.zeros((3, 1)), 1, "at least 2 resamples: 1"),
    ],
)
def test_scores_that_are_no_matrix_of_numbers_are_refused(scores, draws, said):
    with pytest.raises(UserError, match=said):
        robust.bootstrap(robust.mean, scores, generator=np.random.default_rng(0), draws=draws)


def starts_world(generator: np.random.Generator, gain: float = 1.0, runs: int = 4, starts: int = 30) -> tuple:
    """Two configurations whose starts are far more different than the configurations are."""
    hard = 20 * generator.normal(size=starts)
    x, y = (
        hard + generator.normal(size=(runs, 1)) * 0.3 + generator.normal(size=(runs, starts)) * 0.5 for _ in range(2)
    )
    return x + gain, y


def test_a_paired_difference_is_found_where_hard_starts_hide_it_from_unpaired_means():
    x, y = starts_world(np.random.default_rng(0))
    found = difference(x, y, np.random.default_rng(1))
    assert found.value == pytest.approx(x.mean() - y.mean())
    assert 0 < found.low < 1 < found.high < 2
    apart = [robust.bootstrap(robust.mean, side.T, generator=np.random.default_rng(1)) for side in (x, y)]
    assert apart[0].low < apart[1].high


def test_pairing_is_lost_when_the_starts_are_mixed_up():
    x, y = starts_world(np.random.default_rng(0))
    paired = difference(x, y, np.random.default_rng(1))
    mixed = difference(x, np.random.default_rng(2).permuted(y, axis=1), np.random.default_rng(1))
    assert mixed.high - mixed.low > 5 * (paired.high - paired.low)


def difference_ref(x, y, generator, draws):
    """Resamples made one by one, from the definition."""
    values = []
    for _ in range(draws):
        starts = generator.integers(x.shape[1], size=x.shape[1])
        sides = [side[generator.integers(len(side), size=len(side))][:, starts].mean() for side in (x, y)]
        values.append(sides[0] - sides[1])
    return np.quantile(values, [0.025, 0.975])


def test_paired_intervals_agree_with_resamples_made_one_by_one():
    x, y = starts_world(np.random.default_rng(3), runs=5)
    found = difference(x, y[:3], np.random.default_rng(0), draws=6000)
    np.testing.assert_allclose(
        [found.low, found.high], difference_ref(x, y[:3], np.random.default_rng(1), 6000), atol=0.05
    )


def test_training_runs_widen_the_interval_of_a_paired_difference():
    generator = np.random.default_rng(0)
    x, y = starts_world(generator, runs=6)
    noisy = x + 5 * generator.normal(size=(6, 1))
    calm, wide = (difference(side, y, np.random.default_rng(0)) for side in (x, noisy))
    assert wide.high - wide.low > 3 * (calm.high - calm.low)


def test_a_paired_difference_covers_the_truth():
    held = 0
    for world in range(200):
        generator = np.random.default_rng(world)
        found = difference(*starts_world(generator, runs=8), generator, draws=300)
        held += bool(found.low <= 1.0 <= found.high)
    assert held > 0.88 * 200


def test_the_other_way_round_the_difference_changes_its_sign():
    x, y = starts_world(np.random.default_rng(0))
    there, back = difference(x, y, np.random.default_rng(0), 4000), difference(y, x, np.random.default_rng(0), 4000)
    assert there.value == -back.value
    assert there.low == pytest.approx(-back.high, abs=0.05)


@pytest.mark.parametrize(("x", "y"), [((3, 4), (3, 5)), ((3, 0), (3, 0))])
def test_other_starts_cannot_be_paired(x, y):
    with pytest.raises(UserError, match="paired values need the same starts"):
        difference(np.zeros(x), np.zeros(y), np.random.default_rng(0))
