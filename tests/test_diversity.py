"""Measures of how varied a subset is: known entropies, cells by hand, subsets that differ in variety alone."""

import dataclasses

import numpy as np
import pytest

from scaling.building import build_once
from scaling.datasets import d4rl
from scaling.diversity import diversity, knn_entropy
from scaling.source import INSIDE, TIMEOUT, Piece, Source
from scaling.spec import DataSpec, ModelSpec, RunSpec
from scaling.subsets import training_episodes
from scaling.windows import Windows

SPEC = RunSpec(model=ModelSpec(context=5, subsequence=2))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_entropy_of_a_gaussian_is_recovered_and_moves_with_its_scale(size):
    points = np.random.default_rng(0).standard_normal((4000, size))
    truth = 0.5 * size * np.log(2 * np.pi * np.e)
    assert knn_entropy(points, 4) == pytest.approx(truth, abs=0.05 * size)
    assert knn_entropy(10 * points, 4) - knn_entropy(points, 4) == pytest.approx(size * np.log(10.0))


def test_entropy_equals_its_formula_for_points_counted_by_hand():
    """Points 0, 1, 3 on a line, first neighbours at 1, 1, 2: psi(3) - psi(1) + log 2 + (log 1 + log 1 + log 2) / 3."""
    expected = 1.5 + np.log(2.0) + np.log(2.0) / 3
    assert knn_entropy(np.array([[0.0], [1.0], [3.0], [3.0]]), 1) == pytest.approx(expected)
    assert knn_entropy(np.zeros((10, 2)), 1) is None


def clusters(folder, discrete: bool = False):
    """Forty episodes, the first half of them near one point, the second half everywhere."""
    generator = np.random.default_rng(2)
    states = generator.normal(size=(4000, 3)).astype(np.float32)
    states[:2000] *= 0.05
    ends = np.full(4000, INSIDE, np.uint8)
    ends[99::100] = TIMEOUT
    actions = generator.integers(0, 3, 4000) if discrete else np.tanh(states[:, :2])
    piece = Piece(states, actions, np.repeat(np.arange(40.0), 100).astype(np.float32), ends)
    return build_once(lambda: f"clusters{discrete}", lambda: Source("clusters", [piece]), folder)


@pytest.mark.parametrize("discrete", [False, True])
def test_of_two_subsets_of_equal_size_the_more_varied_one_covers_more(tmp_path, discrete):
    store = clusters(tmp_path, discrete)
    same, varied = (diversity(Windows(store, np.arange(a, b), SPEC), store) for a, b in ((0, 20), (20, 40)))
    assert varied["coverage"] > 1.3 * same["coverage"]
    assert varied["entropy"] > same["entropy"] + 1.0
    whole = diversity(Windows(store, np.arange(40), SPEC), store)
    assert whole["coverage"] >= varied["coverage"]
    assert whole["return_quantiles"] == pytest.approx([0.0, 975.0, 1950.0, 2925.0, 3900.0])
    assert whole["return_sd"] == pytest.approx(100 * np.arange(40).std())


def test_on_real_data_more_episodes_cover_more_and_the_same_subset_says_the_same(tmp_path):
    store = d4rl.open(DataSpec(), tmp_path)
    told = [
        diversity(Windows(store, training_episodes(store, DataSpec(fraction=fraction)), SPEC), store)
        for fraction in (0.05, 0.3, 1.0, 1.0)
    ]
    coverage = [one["coverage"] for one in told]
    assert coverage == sorted(coverage)
    assert coverage[0] < 0.7 * coverage[2]
    assert told[2] == told[3]


def test_pictures_are_measured_too(tmp_path):
    generator = np.random.default_rng(0)
    ends = np.full(60, INSIDE, np.uint8)
    ends[29::30] = TIMEOUT
    states = generator.integers(0, 255, (60, 84, 84), np.uint8)
    states[:30] = states[0]
    piece = Piece(states, generator.integers(0, 4, 60), np.ones(60, np.float32), ends)
    store = build_once(lambda: "pictures", lambda: Source("pictures", [piece]), tmp_path)
    spec = dataclasses.replace(SPEC, model=ModelSpec(context=5, encoder="conv"))
    still, moving = (diversity(Windows(store, np.array([episode]), spec), store) for episode in (0, 1))
    assert moving["coverage"] > 3 * still["coverage"]
