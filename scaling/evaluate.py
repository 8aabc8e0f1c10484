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

from scaling import plug
from scaling.errors import UserError
from scaling.players import History, Recurrent, Window, tensors
from scaling.spec import RunSpec, Space
from scaling.windows import Normaliser, Windows

OWN = "own"
"""The environment of the task that generated the data."""


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
        self.windows, self.normalise = windows, normalise
        self.pieces = np.array_split(tiles, max(1, -(-len(tiles) // batch)))
        self.transitions = len(windows)

    def loss(self, model: nn.Module, device: torch.device) -> float:
        """The loss of ``model`` without dropout; windows are gathered batch by batch, as pictures fill a memory."""
        was_training = model.training
        model.eval()
        with torch.no_grad():
            total = torch.zeros((), dtype=torch.float64, device=device)
            for piece in self.pieces:
                batch = self.windows.gather(piece, self.normalise)
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


def check_env(spec: RunSpec, space: Space) -> None:
    """Refuse an environment that does not exist or does not fit the dataset, and a network that cannot be played so.

    Raises:
        UserError: with the environment's id and the sizes on both sides.

    """
    name = spec.evaluate.env
    if name is None:
        return
    check_recurrent(spec)
    if space.image:
        raise UserError(f"evaluate.env {name}: rollouts on pictures are not supported; leave evaluate.env out")
    try:
        env = _make(spec)
    except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
        raise UserError(f"evaluate.env {name!r}: {' '.join(str(error).split())}") from error
    observed, acts = env.observation_space.shape, env.action_space
    env.close()
    choices = isinstance(acts, gymnasium.spaces.Discrete)
    size = acts.n if choices else acts.shape
    wanted = space.action if space.discrete else (space.action,)
    if observed != (space.state,) or choices != space.discrete or size != wanted:
        raise UserError(
            f"evaluate.env {name} has states {observed} and actions {acts if choices else acts.shape}; "
            f"the dataset has ({space.state},) and {wanted}"
        )
    if not choices and not (np.all(acts.low == -1.0) and np.all(acts.high == 1.0)):
        raise UserError(
            f"evaluate.env {name} takes actions between {acts.low} and {acts.high}; only [-1, 1] is supported"
        )


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


def _make(spec: RunSpec) -> gymnasium.Env:
    """The environment; that a newer version exists is not news to who asked for this one."""
    name = spec.evaluate.env
    assert name is not None
    if name == OWN:
        source = plug.load("datasets", spec.data.kind)
        if not hasattr(source, "make"):
            raise UserError(
                f"evaluate.env {OWN} is for generated data, and data.kind is {spec.data.kind}: name a Gymnasium id"
            )
        own: gymnasium.Env = source.make(spec.data)
        return own
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is out of date", category=DeprecationWarning)
        return gymnasium.make(name)


@torch.no_grad()
def play(model: nn.Module, spec: RunSpec, space: Space, normalise: Normaliser, device: torch.device) -> Rollouts:
    """Returns of episodes in which the model is asked for ``target_return``, deterministic and without padding.

    All episodes advance together, one batched forward per step. The return-to-go falls by each reward received.
    """
    assert spec.evaluate.target_return is not None
    count, limit = spec.evaluate.episodes, spec.model.max_timestep
    envs = SyncVectorEnv([lambda: _make(spec)] * count)  # an ended one starts anew and is ignored
    history = History(count, limit, space)
    player = (Recurrent if spec.evaluate.rollout == "recurrent" else Window)(model, history, spec.model.context, device)
    returns, lengths = np.zeros(count), np.zeros(count, np.int64)
    alive = np.ones(count, bool)
    was_training = model.training
    model.eval()
    try:
        observed, _ = envs.reset(seed=[spec.evaluate.seed + index for index in range(count)])
        for step in range(limit):
            history.state[:, step] = normalise(observed)
            history.rtg[:, step] = (spec.evaluate.target_return - returns) / spec.data.rtg_scale
            predicted = player.predict(alive, step).float().cpu().numpy()
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
