"""Training a behaviour policy so that a crash costs seconds: a log of transitions and a state that says how far.

    DIR/transitions.log   every transition, appended
    DIR/state.pt          networks, optimisers, random numbers, length of the log; replaced as a whole
    DIR/checkpoints/N.npz the policy after N steps

After a crash the log is cut to the length that the state names, the replay is filled from it, and a new episode begins.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scaling.collecting import records
from scaling.collecting.actors import Actor, SquashedGaussian, Uniform, load
from scaling.collecting.place import Request
from scaling.collecting.rollouts import Walk, returns_of
from scaling.collecting.sac import REPLAY, Learner
from scaling.collecting.shown import Shown
from scaling.collecting.worlds import make_continuous

ROUND, UPDATES = 32, 16
"""Steps of the environment and gradient steps between which the policy stays the same."""
WARMUP = 1_024
"""First steps, with uniformly random actions and without gradient steps."""
EPISODES = 10
"""Episodes that judge a checkpoint."""
SAVE_SECONDS = 20.0
"""Work that a crash may cost."""
PLAY, JUDGE = 0, 1
"""First number of the seeds: of the episodes trained on, and of those that judge."""


@dataclass
class Course:
    """How far the training is, apart from the networks."""

    steps: int = 0
    episodes: int = 0
    """Begun so far; each has a seed of its own."""
    random_return: tuple[float, float] = (0.0, 0.0)
    """Mean and standard deviation over episodes of uniformly random actions."""
    checkpoints: list[dict[str, float]] = field(default_factory=list)
    """``steps`` and ``mean_return`` of each saved policy."""


def state_path(folder: Path) -> Path:
    """Where the training's state lies."""
    return folder / "state.pt"


def log_path(folder: Path) -> Path:
    """Where the transitions lie."""
    return folder / "transitions.log"


def actor_of(folder: Path, steps: int) -> SquashedGaussian:
    """The policy that was saved after ``steps``."""
    return load(_actor_path(folder, steps))


def _actor_path(folder: Path, steps: int) -> Path:
    return folder / "checkpoints" / f"{steps}.npz"


class Training:
    """One training under way in its folder."""

    def __init__(self, folder: Path, request: Request, steps: int) -> None:
        """Go on from the folder's state, or begin."""
        torch.set_num_threads(1)  # measured: more threads do not help networks this small
        self.folder, self.request, self.total = folder, request, steps
        self.env = make_continuous(request.env, request.policy)
        self.judge_env = make_continuous(request.env, request.policy)
        self.random = Uniform(self.env.action_space.shape[0])
        self.learner = Learner(self.env, request.seed, steps)
        self.generator = np.random.default_rng((PLAY, request.seed))
        self.course = self._restore() if state_path(folder).exists() else self._begin()
        kind = records.record_type(self.env.observation_space.shape[0], self.random.size)
        self.log = records.Log(log_path(folder), kind, self.course.steps)
        self.walk = Walk(self.env, (PLAY, request.seed), self.course.episodes)
        for rows in records.read(self.log.path, kind, max(0, self.course.steps - REPLAY), self.course.steps):
            self.learner.remember(rows)
        self.saved = time.monotonic()

    def _begin(self) -> Course:
        (self.folder / "checkpoints").mkdir(exist_ok=True)
        returns = returns_of(self.judge_env, self.random, (JUDGE, self.request.seed, 0), EPISODES)
        return Course(random_return=(float(returns.mean()), float(returns.std())))

    def _restore(self) -> Course:
        state = torch.load(state_path(self.folder), weights_only=True)
        self.learner.restore(state["learner"])
        self.generator.bit_generator.state = state["generator"]
        return Course(**state["course"])

    def run(self, shown: Shown) -> Course:
        """Train to the end."""
        shown.stage("training", self.total, self.course.steps)
        note = ""
        while self.course.steps < self.total:
            before = self.course.steps
            self._round()
            if self.course.steps % self._every == 0 or self.course.steps == self.total:
                mean = self._checkpoint()
                note = f"mean return {mean:,.1f}"
                shown.say(f"step {self.course.steps:,}: mean return {mean:,.1f} over {EPISODES} episodes")
            elif time.monotonic() - self.saved > SAVE_SECONDS:
                self._save()
            shown.advance(self.course.steps - before, note)
        self.log.close()
        return self.course

    @property
    def _every(self) -> int:
        assert self.request.checkpoint_every is not None
        return self.request.checkpoint_every

    def _round(self) -> None:
        """Play with one policy, then learn; a round ends early at a checkpoint."""
        course = self.course
        count = min(ROUND, self._every - course.steps % self._every, self.total - course.steps)
        actor: Actor = self.random if course.steps < WARMUP else self.learner.actor()
        rows = np.zeros(count, self.walk.kind)
        self.walk.play(rows, actor, self.generator, policy=len(course.checkpoints))
        self.log.append(rows)
        self.learner.remember(rows)
        course.steps += count
        if course.steps > WARMUP:
            self.learner.update(max(1, count * UPDATES // ROUND))

    def _checkpoint(self) -> float:
        """Judge the policy, keep it, and save."""
        actor, steps = self.learner.actor(), self.course.steps
        mean = float(returns_of(self.judge_env, actor, (JUDGE, self.request.seed, steps), EPISODES).mean())
        actor.save(_actor_path(self.folder, steps))
        self.course.checkpoints.append({"steps": steps, "mean_return": mean})
        self._save()
        return mean

    def _save(self) -> None:
        """First the log, then the state that counts on it."""
        self.log.sync()
        self.course.episodes = self.walk.episode + (not self.walk.between)
        state: dict[str, Any] = {
            "learner": self.learner.state(),
            "generator": self.generator.bit_generator.state,
            "course": vars(self.course),
        }
        temporary = state_path(self.folder).with_name(".state.pt.partial")
        torch.save(state, temporary)
        temporary.replace(state_path(self.folder))
        self.saved = time.monotonic()
