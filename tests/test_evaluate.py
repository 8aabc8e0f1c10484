"""Held-out loss and rollouts against slow versions; environments that do not fit."""

import dataclasses
from unittest import mock

import gymnasium
import numpy as np
import pytest
import torch

from scaling import evaluate, plug, scores, stages
from scaling.batches import HostBatches
from scaling.datasets import d4rl
from scaling.errors import Interrupted, UserError
from scaling.evaluate import HeldOut
from scaling.layers.sequence import RecurrentModel
from scaling.rollouts import Performer, check_env, episode_rows, play, play_together, returns_of
from scaling.spec import DataSpec, EvaluateSpec, ModelSpec, RunSpec, Space
from scaling.subsets import held_out_episodes, training_episodes
from scaling.windows import Windows

HOPPER = Space(state=11, action=3)
SPEC = RunSpec(
    model=ModelSpec(width=16, depth=1, context=5, subsequence=2, dropout=0.1),
    evaluate=EvaluateSpec(env="Hopper-v5", episodes=3, targets=(3000.0,), seed=7),
)
SCREEN = Space(state=84, action=4, discrete=True, image=True)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return d4rl.open(DataSpec(), tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def normalise(store):
    return Windows(store, training_episodes(store, DataSpec(fraction=0.1)), SPEC).normaliser()


def model(spec: RunSpec = SPEC) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return plug.load("models", spec.model.kind).Model(spec.model, HOPPER)


def slow_rollout(network, spec: RunSpec, normalise, seed: int) -> tuple[float, int]:
    """One episode, one environment, lists."""
    env = gymnasium.make(spec.evaluate.env)
    observed, _ = env.reset(seed=seed)
    states, actions, rtgs, total = [], [], [], 0.0
    network.eval()
    for step in range(spec.model.max_timestep):
        states.append(normalise(observed))
        rtgs.append((spec.evaluate.targets[0] - total) / spec.data.rtg_scale)
        actions.append(np.zeros(3, np.float32))
        last = slice(-spec.model.context, None)
        first = max(0, step + 1 - spec.model.context)
        with torch.no_grad():
            predicted = network(
                torch.tensor(np.array([rtgs[last]]), dtype=torch.float32),
                torch.tensor(np.array([states[last]])),
                torch.tensor(np.array([actions[last]])),
                torch.arange(first, step + 1)[None],
            )
        actions[-1] = predicted[0, -1].numpy()
        observed, reward, terminated, truncated, _ = env.step(actions[-1])
        total += reward
        if terminated or truncated:
            break
    env.close()
    return total, step + 1


def test_lockstep_rollouts_equal_episodes_played_one_at_a_time(normalise):
    network = model()
    together = play(network, SPEC, HOPPER, normalise, CPU)
    assert network.training
    apart = [slow_rollout(network, SPEC, normalise, 7 + episode) for episode in range(3)]
    assert together.lengths.tolist() == [length for _, length in apart]
    np.testing.assert_allclose(together.returns, [total for total, _ in apart], rtol=1e-3)


def beside(networks: list[torch.nn.Module], performers: list[Performer]) -> dict:
    """What becomes of each; the networks are called one by one, on what is meant for a stack of them."""

    def predict(numbers, inputs):
        given = [networks[number].eval()(*(x[at] for x in inputs)) for at, number in enumerate(numbers)]
        return torch.stack(given)

    return dict(play_together(performers, predict, CPU))


def performer(each_step=lambda: None, **asked) -> Performer:
    spec = dataclasses.replace(SPEC, evaluate=dataclasses.replace(SPEC.evaluate, **asked))
    return Performer(spec, HOPPER, lambda state: state.astype(np.float32), each_step)


def test_runs_played_side_by_side_are_each_as_alone_however_long_and_many_their_episodes():
    networks = [model(), model(dataclasses.replace(SPEC, model=dataclasses.replace(SPEC.model, width=24)))]
    networks.append(model())
    performers = [performer(), performer(episodes=2, targets=(100.0, 900.0), seed=1), performer(max_steps=4)]
    played = beside(networks, performers)
    assert sorted(played) == [0, 1, 2]
    for number, one in enumerate(performers):
        alone = play(networks[number], one.spec, HOPPER, one.normalise, CPU)
        assert played[number].lengths.tolist() == alone.lengths.tolist()
        np.testing.assert_allclose(played[number].returns, alone.returns, rtol=1e-3)
        assert played[number].seeds.tolist() == alone.seeds.tolist()


@pytest.mark.parametrize("steps", [0, 3])
def test_a_run_that_fails_while_it_is_played_ends_alone(steps):
    left = iter(range(steps))

    def fail():
        if next(left, None) is None:
            raise Interrupted("enough")

    performers = [performer(), performer(fail), performer(env="Nowhere-v0")]
    played = beside([model(), model(), model()], performers)
    assert isinstance(played[1], Interrupted)
    assert isinstance(played[2], gymnasium.error.Error)
    expected = play(model(), SPEC, HOPPER, performers[0].normalise, CPU)
    assert played[0].lengths.tolist() == expected.lengths.tolist()


def test_a_forward_pass_that_fails_is_told_for_each_run():
    def predict(numbers, inputs):
        raise RuntimeError("no room")

    played = dict(play_together([performer(), performer(max_steps=4)], predict, CPU))
    assert {number: str(error) for number, error in played.items()} == {0: "no room", 1: "no room"}


def recurrent(spec: RunSpec) -> RunSpec:
    return dataclasses.replace(spec, evaluate=dataclasses.replace(spec.evaluate, rollout="recurrent"))


@pytest.mark.parametrize("kind", ["mambadm", "dmamba"])
def test_a_recurrent_rollout_is_a_window_that_never_slides(kind, normalise):
    spec = dataclasses.replace(SPEC, model=dataclasses.replace(SPEC.model, kind=kind, context=200))
    network = model(spec)
    whole = play(network, spec, HOPPER, normalise, CPU)
    stepped = play(network, recurrent(spec), HOPPER, normalise, CPU)
    assert whole.lengths.max() < 200
    assert stepped.lengths.tolist() == whole.lengths.tolist()
    np.testing.assert_allclose(stepped.returns, whole.returns, rtol=1e-3)
    short = dataclasses.replace(spec, model=dataclasses.replace(spec.model, context=2))
    assert play(network, short, HOPPER, normalise, CPU).returns.tolist() != whole.returns.tolist()


@pytest.mark.parametrize("rollout", ["window", "recurrent"])
def test_a_generated_task_is_played_on_its_own_environment(rollout):
    """A network without training is right by chance at most; an oracle in its place is always right."""

    class Oracle(RecurrentModel):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.__dict__.update(head=self, stem=self.tokens)

        def tokens(self, rtg, state, action, timestep):
            return state[:, :, None].expand(-1, -1, 3, -1).flatten(1, 2)

        def forward(self, rtg, state, action, timestep):
            return self.predict(torch.cat([state, state[:, :1, :1].expand(-1, state.shape[1], 1)], -1))

        def initial_state(self, batch):
            return []

        def step(self, state, token):
            clue = state[0] if state else token[:, :1]
            return torch.cat([token, clue], -1), [clue]

        def predict(self, seen):
            junction, clue = seen[..., 1], seen[..., 3]
            return torch.stack([1 - junction, junction * (clue < 0), junction * (clue > 0)], -1)

    spec = RunSpec(
        model=ModelSpec(kind="dmamba", context=6, width=8, depth=1),
        data=DataSpec(kind="tmaze", horizon=6),
        evaluate=EvaluateSpec(env="own", targets=(1.0,), episodes=20, rollout=rollout),
    )
    space = Space(state=3, action=3, discrete=True)
    check_env(spec, space)
    played = play(Oracle(), spec, space, lambda state: state, CPU)
    assert played.returns.tolist() == [1.0] * 20
    assert played.lengths.tolist() == [6] * 20


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "decision_transformer"}, "needs a Mamba model, and model.kind is decision_transformer: use window"),
        ({"kind": "bc"}, "needs a Mamba model"),
        ({"local_weights": "per_window"}, "needs model.local_weights shared, not per_window"),
        ({"stem": "atari"}, "has no place for the tokens of model.stem atari"),
    ],
)
def test_a_network_without_a_recurrent_form_cannot_be_played_so(changes, said):
    spec = recurrent(dataclasses.replace(SPEC, model=dataclasses.replace(SPEC.model, **changes)))
    with pytest.raises(UserError, match=f"evaluate.rollout recurrent {said}"):
        check_env(spec, HOPPER)


def test_an_episode_goes_on_beyond_the_table_of_timesteps_until_its_limit(normalise):
    limited = dataclasses.replace(SPEC.evaluate, max_steps=9)
    short = RunSpec(model=ModelSpec(width=16, depth=1, context=5, max_timestep=6, subsequence=2), evaluate=limited)
    assert play(model(short), short, HOPPER, normalise, CPU).lengths.tolist() == [9, 9, 9]


def test_held_out_loss_is_the_mean_over_transitions_whatever_the_batch(store, normalise):
    windows = Windows(store, held_out_episodes(store, DataSpec(held_out=0.02)), SPEC)
    network = model()
    batches = HostBatches(windows, normalise, CPU)
    parts = [HeldOut(batches, size) for size in (1, 17, 10_000)]
    losses = [
        float(sum(held_out.summed(network, part, 3) for part in range(3))) / len(batches.windows) for held_out in parts
    ]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)
    network.eval()
    total, count = 0.0, 0
    for start in windows.tiles():
        batch = windows.gather(np.array([start]), normalise)
        length = int(batch.mask.sum())
        arrays = (batch.rtg, batch.state, batch.action, batch.timestep)
        with torch.no_grad():
            predicted = network(*(torch.from_numpy(a[:, :length]) for a in arrays))[0].numpy()
        total += np.square(predicted - batch.action[0, :length]).mean(1).sum()
        count += length
    assert losses[0] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize(("room", "times"), [(2**25, 1), (100, 3)])
def test_held_out_windows_are_gathered_once_where_there_is_room(store, normalise, monkeypatch, room, times):
    monkeypatch.setattr(evaluate, "ROOM", room)
    windows = Windows(store, held_out_episodes(store, DataSpec(held_out=0.02)), SPEC)
    batches = mock.Mock(wraps=HostBatches(windows, normalise, CPU), windows=windows)
    held_out, network = HeldOut(batches, 17), model()
    losses = {float(held_out.summed(network)) for _ in range(3)}
    assert len(losses) == 1
    assert batches.call_count == times * len(held_out.pieces)


@pytest.mark.parametrize(
    ("env", "space", "said"),
    [
        ("Hoper-v5", HOPPER, "evaluate.env 'Hoper-v5'"),
        ("Hopper-v2", HOPPER, "evaluate.env 'Hopper-v2'"),
        ("nomodule:Foo-v0", HOPPER, "nomodule"),
        ("Hopper-v5", Space(state=11, action=2), r"actions \(3,\); the dataset has \(11,\) and \(2,\)"),
        ("CartPole-v1", Space(state=4, action=2), r"actions Discrete\(2\); the dataset has \(4,\) and \(2,\)"),
        (
            "CartPole-v1",
            Space(state=4, action=3, discrete=True),
            r"actions Discrete\(2\); the dataset has \(4,\) and 3",
        ),
        ("own", HOPPER, "evaluate.env own is for generated data, and data.kind is d4rl: name a Gymnasium id"),
        ("ALE/Breakout-v5", HOPPER, "ALE/Breakout-v5 does not show what the dataset does, vectors"),
        ("Hopper-v5", SCREEN, "Hopper-v5 does not show what the dataset does, pictures"),
        ("ALE/Brekout-v5", SCREEN, r"no such game \(did you mean 'breakout'\?\)"),
        ("ALE/Pong-v5", SCREEN, r"actions Discrete\(6\); the dataset has \(84, 84\) and 4"),
        ("Pendulum-v1", Space(state=3, action=1), r"between \[-2.\] and \[2.\]; only \[-1, 1\] is supported"),
    ],
)
def test_an_environment_that_does_not_fit_is_refused(env, space, said):
    with pytest.raises(UserError, match=said):
        check_env(RunSpec(evaluate=EvaluateSpec(env=env, targets=(1.0,))), space)


def test_scores_run_from_the_random_to_the_expert_return():
    assert scores.normalised("Hopper-v5", -20.272305) == pytest.approx(0.0)
    assert scores.normalised("Hopper-v2", 3234.3) == pytest.approx(100.0)
    assert scores.normalised("HalfCheetah-v4", 12135.0) == pytest.approx(100.0)
    assert scores.normalised("CartPole-v1", 5.0) is None


def test_every_target_meets_the_same_starts_and_is_played_as_if_alone(normalise):
    network = model()
    both = dataclasses.replace(SPEC, evaluate=dataclasses.replace(SPEC.evaluate, targets=(3000.0, -500.0)))
    played = play(network, both, HOPPER, normalise, CPU)
    assert played.targets.tolist() == [3000.0] * 3 + [-500.0] * 3
    assert played.seeds.tolist() == [7, 8, 9] * 2
    for target, rows in ((3000.0, slice(0, 3)), (-500.0, slice(3, 6))):
        alone = dataclasses.replace(SPEC, evaluate=dataclasses.replace(SPEC.evaluate, targets=(target,)))
        np.testing.assert_allclose(
            played.returns[rows], play(network, alone, HOPPER, normalise, CPU).returns, rtol=1e-3
        )
    rows = episode_rows(both, played)
    assert [row["episode"] for row in rows] == [0, 1, 2] * 2
    assert returns_of(both, rows)["returns"] == played.returns[:3].tolist()
    assert returns_of(both, rows)["return_mean"] == pytest.approx(played.returns[:3].mean())


class Silent(torch.nn.Module):
    """Predicts the same for ever and keeps what it was asked."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values, self.asked = torch.tensor(values), []

    def forward(self, rtg, state, action, timestep):
        self.asked.append((rtg, state, timestep))
        return self.values.expand(*rtg.shape, -1)


def on_pong(**changes) -> RunSpec:
    asked = {"env": "ALE/Pong-v5", "targets": (20.0,), "episodes": 2, "max_steps": 120, "seed": 3, **changes}
    return RunSpec(
        model=ModelSpec(context=3, frames=4, max_timestep=50, encoder="conv", subsequence=1),
        data=DataSpec(rtg_scale=2.0),
        evaluate=EvaluateSpec(**asked),
    )


PONG = Space(state=84, action=6, discrete=True, image=True)


def test_games_are_played_on_the_emulators_own_frames():
    """An idle player of Pong loses points; its return-to-go grows as they are taken off."""
    network = Silent([9.0, 0, 0, 0, 0, 0])
    played = play(network, on_pong(), PONG, None, CPU)
    assert played.lengths.tolist() == [120, 120]
    assert (played.returns < 0).all()
    rtg, pictures, timestep = network.asked[-1]
    assert pictures.shape == (2, 6, 84, 84)
    assert pictures.dtype == torch.uint8
    assert rtg[:, -1].tolist() == ((20.0 - played.returns) / 2.0).tolist()
    assert timestep[0].tolist() == [49, 49, 49]  # the table of timesteps is shorter than the game
    first = network.asked[0][1]
    assert first.shape == (2, 4, 84, 84)
    assert not first[:, :3].any()  # black before the game began
    assert first[:, 3].any()
    np.testing.assert_array_equal(network.asked[1][1][:, 3], first[:, 3])
    np.testing.assert_array_equal(network.asked[-2][1][:, 1:], pictures[:, :-1])


def test_sticky_actions_idle_starts_and_drawn_choices_change_games_and_seeds_repeat_them():
    network = Silent([0.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    plain = play(network, on_pong(actions="sampled", noops=0), PONG, None, CPU).returns
    for changes in ({"sticky": 0.5}, {"noops": 30}, {"actions": "greedy"}, {"seed": 9}):
        spec = on_pong(**{"actions": "sampled", "noops": 0, "max_steps": 400, **changes})
        network.asked.clear()
        play(network, spec, PONG, None, CPU)
        last = network.asked[-1][1]
        network.asked.clear()
        play(network, on_pong(actions="sampled", noops=0, max_steps=400), PONG, None, CPU)
        assert not torch.equal(last, network.asked[-1][1]), changes
    again = play(network, on_pong(actions="sampled", noops=0), PONG, None, CPU).returns
    np.testing.assert_array_equal(plain, again)


def test_a_clipped_decrement_counts_points_as_the_log_did(monkeypatch):
    class Generous:
        def reset(self, seeds):
            return np.zeros((len(seeds), 2), np.float32)

        def step(self, actions):
            count = len(actions)
            return np.zeros((count, 2), np.float32), np.full(count, 7.0), np.zeros(count, bool)

        def close(self):
            pass

    monkeypatch.setattr(stages, "stage", lambda spec, count: Generous())
    for decrement, last in (("raw", 100.0 - 4 * 7.0), ("clipped", 100.0 - 4 * 1.0)):
        asked = EvaluateSpec(env="x", targets=(100.0,), episodes=1, max_steps=5, rtg_decrement=decrement)
        spec = RunSpec(model=ModelSpec(context=2), data=DataSpec(rtg_scale=1.0), evaluate=asked)
        network = Silent([0.0])
        played = play(network, spec, Space(state=2, action=1), lambda state: state, CPU)
        assert network.asked[-1][0][0, -1] == last
        assert played.returns.tolist() == [35.0]
