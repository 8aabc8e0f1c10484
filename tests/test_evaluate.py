"""Held-out loss and rollouts against slow versions; environments that do not fit."""

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch

from scaling import plug, scores
from scaling.datasets import d4rl
from scaling.errors import UserError
from scaling.evaluate import HeldOut, check_env, play
from scaling.layers.sequence import RecurrentModel
from scaling.spec import DataSpec, EvaluateSpec, ModelSpec, RunSpec, Space
from scaling.subsets import held_out_episodes, training_episodes
from scaling.windows import Windows

HOPPER = Space(state=11, action=3)
SPEC = RunSpec(
    model=ModelSpec(width=16, depth=1, context=5, subsequence=2, dropout=0.1),
    evaluate=EvaluateSpec(env="Hopper-v5", episodes=3, targets=(3000.0,), seed=7),
)
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


def test_the_table_of_timesteps_limits_an_episode(normalise):
    short = RunSpec(
        model=ModelSpec(width=16, depth=1, context=5, max_timestep=6, subsequence=2), evaluate=SPEC.evaluate
    )
    assert play(model(short), short, HOPPER, normalise, CPU).lengths.tolist() == [6, 6, 6]


def test_held_out_loss_is_the_mean_over_transitions_whatever_the_batch(store, normalise):
    windows = Windows(store, held_out_episodes(store, DataSpec(held_out=0.02)), SPEC)
    network = model()
    losses = [HeldOut(windows, normalise, batch).loss(network, CPU) for batch in (1, 17, 10_000)]
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
        ("ALE/Breakout-v5", Space(state=84, action=4, image=True), "rollouts on pictures are not supported"),
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
