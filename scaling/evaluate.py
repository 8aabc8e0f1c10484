"""Held-out loss, and return-conditioned rollouts of all episodes in lockstep."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from scaling import plug, scores, stages
from scaling.batches import Batches, Tensors
from scaling.errors import UserError
from scaling.players import History, Recurrent, Window
from scaling.spec import RunSpec, Space
from scaling.windows import Normaliser

ROOM = 2**25
"""Bytes of held-out windows that a run may keep."""


def summed_loss(
    predicted: Float[Tensor, "batch time action"], action: Tensor, mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, ""]:
    """Action loss added over timesteps that are not padding.

    Squared error averaged over the action's components, or cross-entropy for discrete actions.
    """
    if action.is_floating_point():
        per_step = (predicted.float() - action).square().mean(-1)
    else:
        per_step = functional.cross_entropy(predicted.float().transpose(1, 2), action, reduction="none")
    return torch.where(mask, per_step, 0.0).sum()


class HeldOut:
    """Mean action loss over fixed episodes, each transition counted once."""

    def __init__(self, batches: Batches, size: int) -> None:
        tiles = batches.windows.tiles()
        self.batches, self.windows = batches, batches.windows
        self.pieces = np.array_split(tiles, max(1, -(-len(tiles) // size)))
        self.transitions = len(self.windows)
        self._gathered: dict[int, tuple[Tensors, Tensor]] = {}
        """Windows by the number of their piece, as far as they have room."""

    @torch.no_grad()
    def summed(self, model: nn.Module, part: int = 0, parts: int = 1) -> Float[Tensor, ""]:
        """The loss without dropout, added over transitions, or one of several parts of the sum, in double precision."""
        was_training = model.training
        model.eval()
        total = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)
        for number in range(part, len(self.pieces), parts):
            (rtg, state, action, timestep), mask = self._piece(number)
            total += summed_loss(model(rtg, state, action, timestep), action, mask).double()
        model.train(was_training)
        return total

    def _piece(self, number: int) -> tuple[Tensors, Tensor]:
        """Some windows, gathered anew where all of them would fill a memory, as pictures do."""
        if number in self._gathered:
            return self._gathered[number]
        inputs, mask = self.batches(self.pieces[number])
        if sum(x.nbytes for x in inputs) * len(self.pieces) <= ROOM:
            self._gathered[number] = inputs, mask
        return inputs, mask


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


@torch.no_grad()
def play(
    model: nn.Module,
    spec: RunSpec,
    space: Space,
    normalise: Normaliser,
    device: torch.device,
    each_step: Callable[[], None] = lambda: None,
) -> Rollouts:
    """Returns of ``episodes`` episodes for each of the ``targets``, without padding.

    All advance together, one batched forward per step, before which ``each_step`` is called. The return-to-go falls by
    each reward received.
    """
    asked = spec.evaluate
    targets = np.repeat(asked.targets, asked.episodes)
    seeds = np.tile(asked.seed + np.arange(asked.episodes), len(asked.targets))
    envs = stages.stage(spec, len(targets))
    recurrent = asked.rollout == "recurrent"
    history = History(len(targets), Recurrent.SPAN if recurrent else spec.model.context, spec.model, space)
    player = (Recurrent if recurrent else Window)(model, history, device)
    choose = _Chooser(spec, space)
    returns, received = np.zeros((2, len(targets)))
    lengths, alive = np.zeros(len(targets), np.int64), np.ones(len(targets), bool)
    was_training = model.training
    model.eval()
    try:
        observed = envs.reset(seeds.tolist())
        for _ in range(asked.max_steps):
            each_step()
            rtg = (targets - received) / spec.data.rtg_scale
            history.show(rtg, observed if space.image else normalise(observed))
            history.act(alive, choose(player.predict(alive), alive))
            observed, reward, ended = envs.step(history.action[:, history.filled - 1])
            returns += np.where(alive, reward, 0.0)
            received += np.clip(reward, -1.0, 1.0) if asked.rtg_decrement == "clipped" else reward
            lengths += alive
            alive &= ~ended
            if not alive.any():
                break
    finally:
        envs.close()
        model.train(was_training)
    return Rollouts(targets, seeds, returns, lengths)


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
