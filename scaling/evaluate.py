"""Held-out loss, and return-conditioned rollouts of all episodes in lockstep."""

import warnings
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from scaling.errors import UserError
from scaling.spec import EvaluateSpec, RunSpec, Space
from scaling.windows import Batch, Normaliser, Windows


def tensors(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The model's inputs: rtg, state, action, timestep."""
    arrays = (batch.rtg, batch.state, batch.action, batch.timestep)
    return tuple(torch.from_numpy(array).to(device, non_blocking=True) for array in arrays)  # type: ignore[return-value]


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

    def __init__(self, windows: Windows, normalise: Normaliser, batch: int) -> None:
        tiles = windows.tiles()
        pieces = np.array_split(tiles, max(1, -(-len(tiles) // batch)))
        self.batches = [windows.gather(piece, normalise) for piece in pieces]
        self.transitions = len(windows)

    def loss(self, model: nn.Module, device: torch.device) -> float:
        """The loss of ``model`` without dropout."""
        was_training = model.training
        model.eval()
        with torch.no_grad():
            total = torch.zeros((), dtype=torch.float64, device=device)
            for batch in self.batches:
                rtg, state, action, timestep = tensors(batch, device)
                mask = torch.from_numpy(batch.mask).to(device)
                total += summed_loss(model(rtg, state, action, timestep), action, mask)
        model.train(was_training)
        return float(total) / self.transitions


@dataclass(frozen=True, eq=False)
class Rollouts:
    """What the episodes returned."""

    returns: np.ndarray
    """(episode,) undiscounted returns."""
    lengths: np.ndarray
    """(episode,) environment steps."""


def check_env(spec: EvaluateSpec, space: Space) -> None:
    """Refuse an environment that does not exist or does not fit the dataset.

    Raises:
        UserError: with the environment's id and the sizes on both sides.

    """
    if spec.env is None:
        return
    try:
        env = _make(spec.env)
    except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
        raise UserError(f"evaluate.env {spec.env!r}: {' '.join(str(error).split())}") from error
    observed, acted = env.observation_space.shape, env.action_space.shape
    bounds = getattr(env.action_space, "low", None), getattr(env.action_space, "high", None)
    env.close()
    if observed != (space.state,) or (not space.discrete and acted != (space.action,)):
        raise UserError(
            f"evaluate.env {spec.env} has states {observed} and actions {acted}; "
            f"the dataset has ({space.state},) and ({space.action},)"
        )
    if not space.discrete and not (np.all(bounds[0] == -1.0) and np.all(bounds[1] == 1.0)):
        raise UserError(
            f"evaluate.env {spec.env} takes actions between {bounds[0]} and {bounds[1]}; only [-1, 1] is supported"
        )


def _make(name: str) -> gymnasium.Env:
    """The environment; that a newer version exists is not news to who asked for this one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is out of date", category=DeprecationWarning)
        return gymnasium.make(name)


@torch.no_grad()
def rollout(model: nn.Module, spec: RunSpec, space: Space, normalise: Normaliser, device: torch.device) -> Rollouts:
    """Returns of episodes in which the model is asked for ``target_return``, deterministic and without padding.

    All episodes advance together, one batched forward per step for those still running; their windows have the same
    length, since all began at once. The return-to-go falls by each reward received.
    """
    assert spec.evaluate.env is not None
    assert spec.evaluate.target_return is not None
    count, limit = spec.evaluate.episodes, spec.model.max_timestep
    name = spec.evaluate.env
    envs = SyncVectorEnv([lambda: _make(name)] * count)  # an ended one starts anew and is ignored
    history = _History(count, limit, space)
    returns, lengths = np.zeros(count), np.zeros(count, np.int64)
    alive = np.ones(count, bool)
    was_training = model.training
    model.eval()
    try:
        observed, _ = envs.reset(seed=[spec.evaluate.seed + index for index in range(count)])
        for step in range(limit):
            history.state[:, step] = normalise(observed)
            history.rtg[:, step] = (spec.evaluate.target_return - returns) / spec.data.rtg_scale
            batch = history.window(alive, step, spec.model.context)
            predicted = model(*tensors(batch, device))[:, -1].float().cpu().numpy()
            history.action[alive, step] = predicted.argmax(-1) if space.discrete else predicted
            observed, reward, terminated, truncated, _ = envs.step(history.action[:, step])
            returns += np.where(alive, reward, 0.0)
            lengths += alive
            alive &= ~(terminated | truncated)
            if not alive.any():
                break
    finally:
        envs.close()
        model.train(was_training)
    return Rollouts(returns, lengths)


class _History:
    """Everything the episodes have shown so far, as the model sees it."""

    def __init__(self, count: int, limit: int, space: Space) -> None:
        self.rtg = np.zeros((count, limit), np.float32)
        self.state = np.zeros((count, limit, space.state), np.float32)
        self.action = (
            np.zeros((count, limit), np.int64) if space.discrete else np.zeros((count, limit, space.action), np.float32)
        )

    def window(self, alive: np.ndarray, step: int, context: int) -> Batch:
        """The last ``context`` steps of the running episodes; the current action is still zero and never seen."""
        seen = slice(max(0, step + 1 - context), step + 1)
        rtg = self.rtg[alive, seen]
        timestep = np.broadcast_to(np.arange(seen.start, seen.stop), rtg.shape).copy()
        mask = np.ones(rtg.shape, bool)
        return Batch(rtg, self.state[alive, seen], self.action[alive, seen], timestep, mask)
