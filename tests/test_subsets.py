"""The axes of "more data": what enters a subset, in which order, and in which state."""

import dataclasses
import itertools

import numpy as np
import pytest

from scaling.building import build_once
from scaling.cost import cost_of, subset_of
from scaling.errors import UserError
from scaling.source import INSIDE, TERMINAL, Piece, Source
from scaling.spec import DataSpec, ModelSpec, RunSpec
from scaling.store import Store
from scaling.subsets import degraded, held_out_episodes, segments_of, share_of, training_episodes

LENGTHS = np.random.default_rng(5).integers(3, 40, 120)


def make(folder, policies: bool = True, discrete: bool = False) -> Store:
    """120 episodes of three policies; an episode's reward tells its number."""
    rows = int(LENGTHS.sum())
    generator = np.random.default_rng(1)
    ends = np.full(rows, INSIDE, np.uint8)
    ends[np.cumsum(LENGTHS) - 1] = TERMINAL
    number = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    piece = Piece(
        states=generator.normal(size=(rows, 3)).astype(np.float32),
        actions=generator.integers(0, 4, rows) if discrete else generator.uniform(-1, 1, (rows, 2)).astype(np.float32),
        rewards=(generator.permutation(len(LENGTHS))[number] / LENGTHS[number]).astype(np.float32),
        ends=ends,
        policies=(number % 3).astype(np.int32) if policies else None,
    )
    return build_once(lambda: f"{policies}{discrete}", lambda: Source("made", [piece]), folder)


@pytest.fixture
def store(tmp_path) -> Store:
    return make(tmp_path)


SELECTIONS = ["random", "top_return", "low_return", "per_policy", "per_time"]


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("weights", [(), (1.0, 2.0, 1.0)])
def test_smaller_subsets_nest_in_larger_ones_and_none_holds_a_held_out_episode(store, selection, weights):
    def subset(**size):
        return set(training_episodes(store, DataSpec(selection=selection, weights=weights, draw=3, **size)).tolist())

    sizes = [subset(fraction=fraction) for fraction in (0.1, 0.3, 0.7, 1.0)]
    sizes += [subset(transitions=transitions) for transitions in (100, 400, 900)]
    ordered = sorted(sizes, key=len)
    assert all(small <= large for small, large in itertools.pairwise(ordered))
    assert not set(held_out_episodes(store, DataSpec())) & ordered[-1]


def test_fractions_of_random_episodes_are_what_they_were(store):
    """The subsets of recorded runs, in plain words."""
    held_out = np.random.default_rng(20240602).permutation(120)[:12]
    rest = np.setdiff1d(np.arange(120), held_out)
    expected = np.random.default_rng([20240602, 4]).permutation(rest)[:27]
    assert training_episodes(store, DataSpec(fraction=0.25, draw=4)).tolist() == sorted(expected)


def test_returns_and_time_order_subsets_without_chance(store):
    rest = np.setdiff1d(np.arange(120), held_out_episodes(store, DataSpec()))
    best = training_episodes(store, DataSpec(selection="top_return", fraction=0.2))
    worst = training_episodes(store, DataSpec(selection="low_return", fraction=0.2))
    early = training_episodes(store, DataSpec(selection="per_time", fraction=0.2))
    left = np.setdiff1d(rest, best)
    assert store.returns[best].min() >= store.returns[left].max()
    assert store.returns[worst].max() <= store.returns[np.setdiff1d(rest, worst)].min()
    assert early.tolist() == rest[: len(early)].tolist()
    assert len(best) == len(worst) == len(early) == round(0.2 * len(rest))


def test_one_policy_enters_after_another_in_an_order_that_the_draw_decides(store):
    first = {}
    for draw in range(20):
        episodes = training_episodes(store, DataSpec(selection="per_policy", fraction=0.5, draw=draw))
        counts = np.bincount(store.policies[episodes], minlength=3)
        there = np.bincount(store.policies[np.setdiff1d(np.arange(120), held_out_episodes(store, DataSpec()))])
        assert sorted(counts == there) == [False, False, True]  # one is there as a whole, of another a part
        assert sorted(counts > 0) == [False, True, True]
        first[draw] = int(np.argmax(counts == there))
    assert len(set(first.values())) == 3


def test_a_number_of_transitions_is_met_as_closely_as_whole_episodes_allow(store):
    for wanted in (50, 333, 1000):
        episodes = training_episodes(store, DataSpec(transitions=wanted))
        assert abs(store.lengths[episodes].sum() - wanted) <= LENGTHS.max() / 2
    with pytest.raises(UserError, match=r"data.transitions 99,999 exceeds the 2,\d+ training transitions there are"):
        training_episodes(store, DataSpec(transitions=99999))


@pytest.mark.parametrize("size", [{"transitions": 600}, {"fraction": 0.6}, {"fraction": 1.0}])
def test_weights_are_shares_of_transitions(store, size):
    episodes = training_episodes(store, DataSpec(weights=(3.0, 1.0, 0.0), **size))
    counts = np.bincount(store.policies[episodes], weights=store.lengths[episodes], minlength=3)
    assert counts[2] == 0
    assert counts[0] / counts.sum() == pytest.approx(0.75, abs=0.05)


def test_with_weights_the_whole_is_the_largest_subset_that_has_them(store):
    whole = training_episodes(store, DataSpec(weights=(1.0, 0.0, 0.0)))
    rest = np.setdiff1d(np.arange(120), held_out_episodes(store, DataSpec()))
    assert whole.tolist() == rest[store.policies[rest] == 0].tolist()
    with pytest.raises(UserError, match=r"data.transitions 2,000 with data.weights .* exceeds the"):
        training_episodes(store, DataSpec(weights=(1.0, 0.0, 0.0), transitions=2000))
    with pytest.raises(UserError, match=r"data\.weights has 2 values, and the dataset has 3 policies"):
        training_episodes(store, DataSpec(weights=(1.0, 0.0)))


@pytest.mark.parametrize("changes", [{"selection": "per_policy"}, {"weights": (1.0, 1.0)}])
def test_policies_that_the_dataset_does_not_name_are_asked_for(tmp_path, changes):
    with pytest.raises(UserError, match="needs to know which policy recorded each episode"):
        training_episodes(make(tmp_path, policies=False), DataSpec(**changes))


def test_a_policy_without_training_episodes_cannot_have_weight(store):
    labels = np.where(store.policies == 1, 0, store.policies)
    gap = dataclasses.replace(store, policies=labels)
    with pytest.raises(UserError, match=r"data\.weights asks for episodes of policy 1, and none is left"):
        training_episodes(gap, DataSpec(weights=(1.0, 1.0, 1.0)))
    assert len(training_episodes(gap, DataSpec(weights=(1.0, 0.0, 1.0))))


def test_the_share_that_is_asked_for_is_the_same_for_every_draw(store):
    rest = np.setdiff1d(np.arange(120), held_out_episodes(store, DataSpec()))
    whole = store.lengths[rest].sum()
    assert {share_of(store, DataSpec(transitions=500, draw=draw)) for draw in range(3)} == {500 / whole}
    assert share_of(store, DataSpec(fraction=0.3)) == 0.3


def spec(**data) -> RunSpec:
    return RunSpec(model=ModelSpec(context=4, subsequence=2), data=DataSpec(rtg_scale=1.0, **data))


def test_a_segment_is_a_piece_of_each_episode_with_its_own_timesteps_and_returns(store):
    windows = subset_of(spec(segment=5, fraction=0.5), store).training
    assert windows.lengths.tolist() == np.minimum(store.lengths[windows.episodes], 5).tolist()
    assert (windows.skipped + windows.lengths <= store.lengths[windows.episodes]).all()
    assert windows.skipped.max() > 5
    batch = windows.gather(np.arange(len(windows)), windows.normaliser())
    episode = np.searchsorted(windows.before, np.arange(len(windows)), side="right") - 1
    rows = windows.first[episode] + np.arange(len(windows)) - windows.before[episode]
    np.testing.assert_array_equal(batch.action[:, 0], store.actions[rows])
    np.testing.assert_array_equal(batch.rtg[:, 0], store.rtg[rows])
    np.testing.assert_array_equal(batch.timestep[:, 0], rows - store.starts[windows.episodes][episode])
    whole = subset_of(spec(segment=5), store).training
    both = np.isin(whole.episodes, windows.episodes)
    np.testing.assert_array_equal(whole.skipped[both], windows.skipped)  # the same piece in a larger subset
    held_out = subset_of(spec(segment=5), store).held_out
    assert held_out.lengths.tolist() == store.lengths[held_out.episodes].tolist()


def test_segments_lie_anywhere_in_their_episodes(store):
    every = np.arange(len(LENGTHS))
    begins = np.concatenate([segments_of(store, every, DataSpec(segment=2, draw=draw))[0] for draw in range(50)])
    last = np.tile(LENGTHS - 2, 50)
    assert (begins <= last).all()
    assert (begins == last)[last > 0].any()
    assert np.mean(begins[last > 0] / last[last > 0]) == pytest.approx(0.5, abs=0.02)


def test_noise_has_the_size_that_was_asked_for_and_spares_what_is_held_out(store):
    noisy = degraded(store, DataSpec(action_noise=0.05, reward_noise=0.3))
    inside = np.abs(store.actions) < 0.8
    assert (noisy.actions - store.actions)[inside].std() == pytest.approx(0.05, rel=0.05)
    assert np.abs(noisy.actions).max() <= 1.0
    assert (noisy.rewards - store.rewards).std() == pytest.approx(0.3, rel=0.05)
    ends = noisy.starts[1:] - 1
    np.testing.assert_array_equal(noisy.rtg[ends], noisy.rewards[ends])
    subset = subset_of(spec(action_noise=0.05), store)
    assert subset.held_out.store is store
    assert subset.training.store.actions is not store.actions


def test_noise_on_a_transition_is_the_same_in_every_subset_and_another_with_every_draw(store):
    noisy = [
        degraded(store, DataSpec(action_noise=0.1, fraction=f, draw=d)).actions
        for f, d in ((1.0, 0), (0.1, 0), (1.0, 1))
    ]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert not np.array_equal(noisy[0], noisy[2])


def test_noise_on_choices_replaces_some(tmp_path):
    store = make(tmp_path, discrete=True)
    noisy = degraded(store, DataSpec(action_noise=0.2))
    assert np.mean(noisy.actions != store.actions) == pytest.approx(0.2 * 3 / 4, abs=0.02)
    assert set(np.unique(noisy.actions)) <= {0, 1, 2, 3}


def test_a_probability_above_one_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.action_noise is a probability where actions are choices: 1.5"):
        cost_of(spec(action_noise=1.5), make(tmp_path, discrete=True))


def test_data_that_are_not_degraded_stay_on_disk(store):
    assert degraded(store, DataSpec()).actions is store.actions


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"transitions": 0}, "data.transitions must be at least 1 and stand without data.fraction: 0, 1.0"),
        ({"transitions": 10, "fraction": 0.5}, "stand without data.fraction: 10, 0.5"),
        ({"weights": (-1.0, 2.0)}, r"data.weights must not be negative, nor all zero: \[-1.0, 2.0\]"),
        ({"segment": 0}, "data.segment must be at least 1: 0"),
        ({"reward_noise": -0.1}, "data.reward_noise must not be negative: -0.1"),
    ],
)
def test_what_makes_no_subset_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(DataSpec(), **changes)
