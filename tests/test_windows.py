"""Splits, nested fractions, and windows against a slow loop."""

import itertools

import numpy as np
import pytest

from scaling.datasets import d4rl
from scaling.errors import UserError
from scaling.spec import DataSpec, ModelSpec, RunSpec, Space
from scaling.subsets import held_out_episodes, training_episodes
from scaling.windows import Windows, check_fits

from conftest import build, make_columns, write_hdf5


def run(context: int, scale: float = 1.0) -> RunSpec:
    return RunSpec(model=ModelSpec(context=context), data=DataSpec(rtg_scale=scale))


@pytest.fixture
def store(tmp_path):
    lengths = np.random.default_rng(3).integers(1, 40, 60).tolist()
    return build(write_hdf5(tmp_path / "many.hdf5", make_columns(lengths)), d4rl.read)


def test_no_fraction_and_no_draw_ever_sees_a_held_out_episode(store):
    held_out = set(held_out_episodes(store, DataSpec()))
    assert len(held_out) == 6
    for draw in range(5):
        spec = DataSpec(fraction=1.0, draw=draw)
        assert set(held_out_episodes(store, spec)) == held_out
        assert set(training_episodes(store, spec)) == set(range(60)) - held_out


def test_fractions_of_one_draw_nest_and_draws_differ(store):
    sizes = (0.05, 0.1, 0.3, 0.7, 1.0)
    subsets = [set(training_episodes(store, DataSpec(fraction=f, draw=4))) for f in sizes]
    assert [len(s) for s in subsets] == [round(f * 54) for f in sizes]
    assert all(small < large for small, large in itertools.pairwise(subsets))
    other = set(training_episodes(store, DataSpec(fraction=0.3, draw=5)))
    assert other != subsets[2]


def test_a_fraction_without_an_episode_is_refused(store):
    with pytest.raises(UserError, match=r"data.fraction 0.001 of 54 training episodes holds no episode"):
        training_episodes(store, DataSpec(fraction=0.001))


def test_a_context_longer_than_every_episode_and_an_episode_longer_than_the_table_are_refused(store):
    longest = int(store.lengths.max())
    with pytest.raises(UserError, match=f"the longest has {longest} steps"):
        check_fits(store, RunSpec(model=ModelSpec(context=longest + 1)))
    with pytest.raises(UserError, match=r"model.max_timestep 20 is too small"):
        check_fits(store, RunSpec(model=ModelSpec(max_timestep=20)))
    check_fits(store, RunSpec(model=ModelSpec(context=longest, max_timestep=longest)))
    with pytest.raises(UserError, match=r"data.starts episode would never show what lies beyond model.context 5"):
        check_fits(store, RunSpec(model=ModelSpec(context=5), data=DataSpec(starts="episode")))


def slow_window(store, episode: int, step: int, context: int, normalise, scale: float) -> list[tuple]:
    """One window as a loop over its timesteps."""
    first, length = int(store.starts[episode]), int(store.lengths[episode])
    rows = []
    for t in range(step, step + context):
        if t < length:
            row = first + t
            rtg = store.rewards[row : first + length].astype(np.float64).sum() / scale
            rows.append((rtg, normalise(store.states[row]), store.actions[row], t, True))
        else:
            rows.append((0.0, np.zeros(4), np.zeros(2), 0, False))
    return rows


@pytest.mark.parametrize("context", [1, 5, 39])
def test_windows_equal_a_slow_loop_for_every_start(store, context):
    episodes = training_episodes(store, DataSpec(fraction=0.5))
    windows = Windows(store, episodes, run(context, 7.0))
    normalise = windows.normaliser()
    batch = windows.gather(np.arange(len(windows)), normalise)
    index = 0
    for episode in episodes:
        for step in range(store.lengths[episode]):
            for t, expected in enumerate(slow_window(store, episode, step, context, normalise, 7.0)):
                found = [getattr(batch, name)[index, t] for name in ("rtg", "state", "action", "timestep", "mask")]
                for one, other in zip(found, expected, strict=True):
                    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
            index += 1
    assert index == len(windows)


def test_tiles_cover_every_transition_once(store):
    episodes = held_out_episodes(store, DataSpec())
    windows = Windows(store, episodes, run(6))
    batch = windows.gather(windows.tiles(), windows.normaliser())
    assert batch.mask.sum() == len(windows) == store.lengths[episodes].sum()
    seen = batch.action[batch.mask]
    np.testing.assert_array_equal(seen, np.concatenate(list(windows.actions())))


def test_states_are_normalised_by_the_training_subset_alone(store):
    episodes = training_episodes(store, DataSpec(fraction=0.2))
    rows = np.concatenate([np.arange(store.starts[e], store.starts[e + 1]) for e in episodes])
    normalise = Windows(store, episodes, run(5)).normaliser()
    np.testing.assert_allclose(normalise.mean, store.states[rows].mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(normalise.std, store.states[rows].std(0), rtol=1e-5)


def test_every_transition_is_drawn_equally_often_and_by_the_generator_alone(store):
    windows = Windows(store, training_episodes(store, DataSpec()), run(5))
    drawn = windows.draw(200 * len(windows), np.random.default_rng(0))
    counts = np.bincount(drawn, minlength=len(windows))
    assert abs(counts.mean() - 200) < 1e-9
    assert counts.std() < 1.15 * np.sqrt(200)
    np.testing.assert_array_equal(windows.draw(9, np.random.default_rng(5)), windows.draw(9, np.random.default_rng(5)))


def test_pictures_come_once_each_black_outside_their_episode(pictures):
    spec = RunSpec(model=ModelSpec(context=3, frames=4))
    windows = Windows(pictures, np.array([0, 2]), spec)
    batch = windows.gather(np.array([0, 4, 5, 13]), windows.normaliser())
    assert batch.state.shape == (4, 6, 84, 84)
    assert batch.state.dtype == np.uint8
    assert (batch.state == batch.state[:, :, :1, :1]).all()
    assert batch.state[:, :, 0, 0].tolist() == [
        [0, 0, 0, 1, 2, 3],  # three black ones before the first picture of an episode
        [2, 3, 4, 5, 0, 0],  # the last state of an episode, and padding
        [0, 0, 0, 8, 9, 10],
        [13, 14, 15, 16, 0, 0],
    ]
    assert batch.mask.tolist() == [[True] * 3, [True, False, False], [True] * 3, [True, False, False]]


def test_a_store_of_pictures_says_so(pictures):
    assert pictures.space == Space(state=84, action=4, discrete=True, image=True)


def test_a_segment_of_pictures_is_seen_with_the_pictures_before_it(pictures):
    spec = RunSpec(model=ModelSpec(context=3, frames=4))
    cut = np.array([2]), np.array([3])  # of the last episode, steps 2 to 4
    batch = Windows(pictures, np.array([2]), spec, cut).gather(np.array([0, 1]), None)
    assert batch.state[:, :, 0, 0].tolist() == [[0, 8, 9, 10, 11, 12], [8, 9, 10, 11, 12, 0]]
    assert batch.timestep.tolist() == [[2, 3, 4], [3, 4, 0]]
