"""Return-conditioned rollouts: all episodes of a run in lockstep, and those of several runs side by side."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from scaling import plug, scores, stages
from scaling.batches import Tensors, tensors
from scaling.errors import UserError
from scaling.players import History, Recurrent, Window
from scaling.spec import RunSpec, Space
from scaling.windows import Normaliser


@dataclass(frozen=True, eq=False)
class Rollouts:
    """What the episodes returned."""

    targets: np.ndarray
    """(episode,) returns asked for."""
    seeds: np.ndarray
    """(episode,) of the environment; the same for every target."""
    returns: np.ndarray
    """(episode,) undiscounted returns."""
    lengths: np.ndarray
    """(episode,) environment steps."""


def check_env(spec: RunSpec, space: Space) -> None:
    """Refuse an environment that does not exist or does not fit the dataset, and a network that cannot be played so.

    Raises:
        UserError: with the environment's id and the sizes on both sides.

    """
    if spec.evaluate.env is not None:
        check_recurrent(spec)
        stages.check_env(spec, space)


def check_recurrent(spec: RunSpec) -> None:
    """Refuse recurrent rollouts of a network that has no recurrent form.

    Raises:
        UserError: with the field and what it may be.

    """
    if spec.evaluate.rollout == "window":
        return
    architecture = plug.load("models", spec.model.kind)
    if not hasattr(architecture, "check_recurrent"):
        raise UserError(
            f"evaluate.rollout recurrent needs a Mamba model, and model.kind is {spec.model.kind}: use window"
        )
    architecture.check_recurrent(spec.model)


class Rollout:
    """The episodes of one run under way; the return-to-go falls by each reward received."""

    def __init__(self, spec: RunSpec, space: Space, normalise: Normaliser) -> None:
        """``episodes`` episodes for each of the ``targets``."""
        asked = self.asked = spec.evaluate
        self.scale, self.normalise = spec.data.rtg_scale, (lambda state: state) if space.image else normalise
        self.targets = np.repeat(asked.targets, asked.episodes)
        self.seeds = np.tile(asked.seed + np.arange(asked.episodes), len(asked.targets))
        span = Recurrent.SPAN if self.is_recurrent else spec.model.context
        self.history = History(len(self.targets), span, spec.model, space)
        self.choose = _Chooser(spec, space)
        self.returns, self.received = np.zeros((2, len(self.targets)))
        self.lengths, self.alive = np.zeros(len(self.targets), np.int64), np.ones(len(self.targets), bool)
        self.envs = stages.stage(spec, len(self.targets))
        try:
            self.observed = self.envs.reset(self.seeds.tolist())
        except BaseException:
            self.envs.close()
            raise

    @property
    def is_recurrent(self) -> bool:
        """Whether the network remembers and sees no window."""
        return self.asked.rollout == "recurrent"

    @property
    def goes_on(self) -> bool:
        """Whether there is another step."""
        return self.history.steps < self.asked.max_steps and bool(self.alive.any())

    def show(self) -> None:
        """A step begins."""
        self.history.show((self.targets - self.received) / self.scale, self.normalise(self.observed))

    def act(self, predicted: Float[Tensor, "running action"]) -> None:
        """It ends, by what the network predicted for the running episodes."""
        alive, clipped = self.alive, self.asked.rtg_decrement == "clipped"
        self.history.act(alive, self.choose(predicted, alive))
        self.observed, reward, ended = self.envs.step(self.history.action[:, self.history.filled - 1])
        self.returns += np.where(alive, reward, 0.0)
        self.received += np.clip(reward, -1.0, 1.0) if clipped else reward
        self.lengths += alive
        self.alive = alive & ~ended

    def close(self) -> None:
        """Free what the environments hold."""
        self.envs.close()

    def result(self) -> Rollouts:
        """What there is to tell at the end."""
        return Rollouts(self.targets, self.seeds, self.returns, self.lengths)


@torch.no_grad()
def play(
    model: nn.Module,
    spec: RunSpec,
    space: Space,
    normalise: Normaliser,
    device: torch.device,
    each_step: Callable[[], None] = lambda: None,
) -> Rollouts:
    """Returns of all episodes of a run; one batched forward per step, before which ``each_step`` is called."""
    was_training = model.training
    model.eval()
    try:
        with closing(Rollout(spec, space, normalise)) as rollout:
            player = (Recurrent if rollout.is_recurrent else Window)(model, rollout.history, device)
            while rollout.goes_on:
                each_step()
                rollout.show()
                rollout.act(player.predict(rollout.alive))
    finally:
        model.train(was_training)
    return rollout.result()


@dataclass(frozen=True, eq=False)
class Performer:
    """A run whose episodes are played beside those of others; it sees windows."""

    spec: RunSpec
    space: Space
    normalise: Normaliser
    each_step: Callable[[], None]
    """Called before each of its steps; what it raises ends the run's rollouts alone."""


Predict = Callable[[list[int], Tensors], Tensor]
"""From numbers of performers and their windows, (performer, episode, time, ...), to (performer, episode, time, action).
"""


def play_together(
    performers: Sequence[Performer], predict: Predict, device: torch.device
) -> Iterator[tuple[int, Rollouts | Exception]]:
    """Each performer's number and what :func:`play` gives for it, or how it failed, as soon as its episodes ended."""
    with closing(_Company(performers, predict, device)) as company:
        yield from company.failures()
        while company.playing:
            yield from company.results()
            company.step()
            yield from company.failures()


class _Company:
    """Performers whose episodes are under way."""

    def __init__(self, performers: Sequence[Performer], predict: Predict, device: torch.device) -> None:
        self.performers, self.predict, self.device = performers, predict, device
        self.playing: dict[int, Rollout] = {}
        self.failed: list[tuple[int, Exception]] = []
        for at in range(len(performers)):
            self._guard(at, self._begin)

    def _begin(self, at: int) -> None:
        one = self.performers[at]
        self.playing[at] = Rollout(one.spec, one.space, one.normalise)

    def _show(self, at: int) -> None:
        self.performers[at].each_step()
        self.playing[at].show()

    def _guard(self, at: int, act: Callable[..., None], *given: Any) -> None:
        try:
            act(at, *given)
        except Exception as error:  # noqa: BLE001 - its own, which the others need not share
            self.failed.append((at, error))
            if at in self.playing:
                self.playing.pop(at).close()

    def results(self) -> Iterator[tuple[int, Rollouts]]:
        """Those whose episodes have all ended."""
        for at in [at for at, rollout in self.playing.items() if not rollout.goes_on]:
            with closing(self.playing.pop(at)) as rollout:
                yield at, rollout.result()

    def failures(self) -> Iterator[tuple[int, Exception]]:
        """Those that failed since this was last asked."""
        yield from self.failed
        self.failed.clear()

    @torch.no_grad()
    def step(self) -> None:
        """One step of all episodes that go on."""
        for at in list(self.playing):
            self._guard(at, self._show)
        going_on = list(self.playing)
        if not going_on:
            return
        given: list[Any]
        try:
            given = list(self.predict(going_on, _windows(list(self.playing.values()), self.device))[:, :, -1])
        except Exception as error:  # noqa: BLE001 - it is told for each
            given = [error] * len(going_on)
        for at, own in zip(going_on, given, strict=True):
            self._guard(at, self._act, own)

    def _act(self, at: int, predicted: Float[Tensor, "episode action"] | Exception) -> None:
        if isinstance(predicted, Exception):
            raise predicted
        rollout = self.playing[at]
        rollout.act(predicted[: int(rollout.alive.sum())])

    def close(self) -> None:
        """End all, whatever they were at."""
        for rollout in self.playing.values():
            rollout.close()


def _windows(playing: Sequence[Rollout], device: torch.device) -> Tensors:
    """The running episodes of each, and again its first until there are as many of each."""
    running = [np.flatnonzero(rollout.alive) for rollout in playing]
    most = max(map(len, running))
    filled = [np.concatenate([own, np.repeat(own[:1], most - len(own))]) for own in running]
    each = [tensors(rollout.history.window(own), device) for rollout, own in zip(playing, filled, strict=True)]
    rtg, state, action, timestep = (torch.stack(one) for one in zip(*each, strict=True))
    return rtg, state, action, timestep


class _Chooser:
    """Turns predictions into actions; chance is the same for an episode whether others have ended or not."""

    def __init__(self, spec: RunSpec, space: Space) -> None:
        self.discrete, self.sampled = space.discrete, spec.evaluate.actions == "sampled"
        self.generator = np.random.default_rng([spec.evaluate.seed, spec.seed])

    def __call__(self, predicted: Float[Tensor, "running action"], alive: np.ndarray) -> np.ndarray:
        """(running,) choices, or (running, action) vectors."""
        values = predicted.float().cpu().numpy()
        if not self.discrete:
            return values
        if self.sampled:  # the largest of logits with Gumbel noise is a draw from their softmax
            values = values + self.generator.gumbel(size=(len(alive), values.shape[1]))[alive]
        chosen: np.ndarray = values.argmax(-1)
        return chosen


def episode_rows(spec: RunSpec, played: Rollouts) -> list[dict[str, Any]]:
    """What :mod:`scaling.episodes` keeps of each episode, but for the run's name."""
    env = spec.evaluate.env or ""
    return [
        {
            "env": env,
            "target": float(played.targets[index]),
            "episode": index % spec.evaluate.episodes,
            "seed": int(played.seeds[index]),
            "return": float(played.returns[index]),
            "length": int(played.lengths[index]),
            "score": scores.normalised(env, float(played.returns[index])),
        }
        for index in range(len(played.returns))
    ]


def returns_of(spec: RunSpec, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The columns ``returns``, ``return_mean`` and ``score`` of a run, from the episodes of its first target."""
    if not rows:
        return {}
    returns = [row["return"] for row in rows if row["target"] == spec.evaluate.targets[0]]
    mean = float(np.mean(returns))
    return {"return_mean": mean, "returns": returns, "score": scores.normalised(spec.evaluate.env or "", mean)}
