"""The memory tasks: what their experts do, what they show, and how much memory they need."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as check_gymnasium

from scaling.datasets import local, tmaze
from scaling.spec import DataSpec, RunSpec
from scaling.subsets import training_episodes
from scaling.windows import Windows

TASKS = {"tmaze": tmaze, "local": local}


def data(kind: str, horizon: int, **changes) -> DataSpec:
    return DataSpec(kind=kind, horizon=horizon, episodes=40, **changes)


def play(task, choose, seed: int) -> float:
    total, over = 0.0, False
    state, _ = task.reset(seed=seed)
    while not over:
        state, reward, terminated, truncated, _ = task.step(choose(task, state))
        total, over = total + reward, terminated or truncated
    return total


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("horizon", [2, 3, 11])
def test_the_recorded_expert_earns_everything(kind, horizon, tmp_path):
    store = TASKS[kind].open(data(kind, horizon), tmp_path)
    np.testing.assert_allclose(store.returns, 1.0, rtol=1e-5)
    assert len(store.terminal) == 40
    assert store.discrete
    assert store.action_size == 3
    assert set(store.lengths) == {horizon if kind == "tmaze" else local.STEPS}


def test_a_task_has_all_its_choices_however_few_its_episodes_take(tmp_path):
    store = tmaze.open(DataSpec(kind="tmaze", horizon=5, episodes=2, seed=1), tmp_path)
    assert store.actions.max() == tmaze.LEFT
    assert store.action_size == 3


@pytest.mark.parametrize("kind", TASKS)
def test_the_same_spec_gives_the_same_data_and_another_seed_gives_other_data(kind, tmp_path):
    digests = [TASKS[kind].open(data(kind, 5, seed=seed), tmp_path).digest for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.filterwarnings("ignore:.*render.*")
@pytest.mark.filterwarnings("ignore:.*env.spec.*")
def test_the_tasks_are_gymnasium_environments(kind):
    check_gymnasium(TASKS[kind].make(data(kind, 5)), skip_render_check=True)


def test_a_turn_in_the_maze_follows_from_the_first_state_and_from_no_other(tmp_path):
    store = tmaze.open(data("tmaze", 6, seed=3), tmp_path)
    states, turns = store.states.reshape(40, 6, 3), store.actions.reshape(40, 6)
    clues = states[:, 0, 0]
    assert set(clues) == {-1.0, 1.0}
    assert ((turns[:, -1] == tmaze.RIGHT) == (clues > 0)).all()
    assert (turns[:, :-1] == tmaze.ON).all()
    assert (states[:, 1:, 0] == 0).all()
    assert (states[:, :, 1] == (np.arange(6) == 5)).all()


def test_who_guesses_in_the_maze_is_right_half_of_the_time_and_who_turns_early_never():
    task, generator = tmaze.TMaze(4), np.random.default_rng(0)
    guesses = [
        play(task, lambda _, state: generator.integers(1, 3) if state[1] else tmaze.ON, seed) for seed in range(400)
    ]
    assert 0.42 < np.mean(guesses) < 0.58
    assert sum(play(task, lambda *_: np.int64(tmaze.LEFT), seed) for seed in range(20)) == 0


@pytest.mark.parametrize("horizon", [1, 2, 7])
def test_the_local_task_repeats_the_symbol_of_that_many_steps_ago(horizon, tmp_path):
    store = local.open(data("local", horizon), tmp_path)
    symbols, said = store.states.reshape(40, local.STEPS), store.actions.reshape(40, local.STEPS)
    assert (said[:, : horizon - 1] == local.WAIT).all()
    repeated = np.where(symbols[:, : local.STEPS - horizon + 1] > 0, 2, 1)
    assert (said[:, horizon - 1 :] == repeated).all()


def test_windows_can_begin_where_episodes_do(tmp_path):
    spec = RunSpec(data=data("tmaze", 7, starts="episode"))
    windows = Windows(tmaze.open(spec.data, tmp_path), np.arange(10), spec)
    drawn = windows.draw(200, np.random.default_rng(0))
    assert set(drawn % 7) == {0}
    assert len(set(drawn)) == 10
    assert windows.mean_steps() == 7
    assert windows.possible == 10
    anywhere = RunSpec(data=data("tmaze", 7))
    store = tmaze.open(anywhere.data, tmp_path)
    all_starts = Windows(store, training_episodes(store, anywhere.data), anywhere)
    assert all_starts.mean_steps() == pytest.approx((1 + 2 + 3 + 4 + 5 + 6 + 7) / 7)
