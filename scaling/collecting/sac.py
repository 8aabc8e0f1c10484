"""Soft actor-critic of stable-baselines3 (Raffin et al. 2021), driven from outside so that it can stop at any step.

The library brings networks, optimisers, replay buffer and the update; the steps of the environment are ours. Its
random numbers are the global ones of NumPy and torch, which the state therefore holds.
"""

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box

from scaling.collecting.actors import SquashedGaussian

WIDTH, BATCH = 128, 256
"""Small enough that an update costs little more than its calls, and still enough for Hopper."""
ACTOR_RATE, CRITIC_RATE = 3.0e-4, 1.0e-3
"""Learning rates; values are learned faster than the policy that follows them, as in CleanRL's SAC."""
REPLAY = 1_000_000
"""Transitions remembered at most."""
BOX = "observations", "actions", "rewards", "next_observations"


class _Spaces(gymnasium.Env[np.ndarray, np.ndarray]):
    """What the library wants to know of an environment; observations are kept in single precision."""

    def __init__(self, env: gymnasium.Env) -> None:
        self.observation_space = Box(-np.inf, np.inf, env.observation_space.shape, np.float32)
        self.action_space = Box(-1.0, 1.0, env.action_space.shape, np.float32)


class Learner:
    """The networks and what they have seen."""

    def __init__(self, env: gymnasium.Env, seed: int, transitions: int) -> None:
        """Begin with random networks and an empty replay for as many transitions."""
        from stable_baselines3 import SAC  # optional extra: collect
        from stable_baselines3.common.logger import configure

        self._model: Any = SAC(
            "MlpPolicy",
            _Spaces(env),
            buffer_size=min(transitions, REPLAY),
            learning_rate=ACTOR_RATE,
            policy_kwargs={"net_arch": [WIDTH, WIDTH], "optimizer_kwargs": {"fused": True}},
            seed=seed,
            device="cpu",
        )
        self._model.set_logger(configure(None, []))
        self._replay: Any = self._model.replay_buffer
        self._model._update_learning_rate = lambda optimisers: None  # it would give all the same
        for optimiser in (self._model.critic.optimizer, self._model.ent_coef_optimizer):
            optimiser.param_groups[0]["lr"] = CRITIC_RATE

    def remember(self, records: np.ndarray) -> None:
        """Put transitions into the replay, over the oldest ones when it is full."""
        replay = self._replay
        place = (replay.pos + np.arange(len(records))) % replay.buffer_size
        for name in BOX:
            getattr(replay, name)[place, 0] = records[name]
        replay.dones[place, 0] = records["terminals"]  # a timeout is not an end: the value goes on
        replay.full |= replay.pos + len(records) >= replay.buffer_size
        replay.pos = (replay.pos + len(records)) % replay.buffer_size

    def update(self, count: int) -> None:
        """Take gradient steps."""
        if count:
            self._model.train(count, BATCH)

    def actor(self) -> SquashedGaussian:
        """The policy of this moment."""
        actor = self._model.actor
        layers = [layer for layer in actor.latent_pi if isinstance(layer, torch.nn.Linear)]
        heads = (actor.mu, actor.log_std)
        with torch.no_grad():
            weights = [layer.weight.numpy().copy() for layer in layers] + [torch.cat([h.weight for h in heads]).numpy()]
            biases = [layer.bias.numpy().copy() for layer in layers] + [torch.cat([h.bias for h in heads]).numpy()]
        return SquashedGaussian(tuple(weights), tuple(biases))

    def state(self) -> dict[str, Any]:
        """Networks, optimisers and random numbers; not the replay, which the log holds."""
        numbers = np.random.get_state()  # noqa: NPY002 - the library draws from it
        return {
            **{name: part.state_dict() for name, part in self._parts().items()},
            "entropy": self._model.log_ent_coef.detach().clone(),
            "torch": torch.get_rng_state(),
            "numpy": [numbers[0], numbers[1].tolist(), *numbers[2:]],  # type: ignore[index]
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        with torch.no_grad():
            self._model.log_ent_coef.copy_(state["entropy"])
        torch.set_rng_state(state["torch"])
        np.random.set_state(tuple(state["numpy"]))  # noqa: NPY002 - the library draws from it

    def _parts(self) -> dict[str, Any]:
        model = self._model
        return {
            "networks": model.policy,
            "actor_optimiser": model.actor.optimizer,
            "critic_optimiser": model.critic.optimizer,
            "entropy_optimiser": model.ent_coef_optimizer,
        }
