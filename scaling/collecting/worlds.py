"""Environments that data can be collected from, and what is wrong with the others."""

import warnings
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from scaling.collecting.records import record_type
from scaling.errors import UserError

ATARI = "ALE/"


def make(name: str, **options: Any) -> gymnasium.Env:
    """The environment; that a newer version exists is not news to who asked for this one.

    Raises:
        UserError: there is no such environment, or it cannot be started here.

    """
    if name.startswith(ATARI):
        _register_atari(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is out of date", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*Using the latest versioned", category=UserWarning)
        try:
            env = gymnasium.make(name, disable_env_checker=True, **options)
        except (gymnasium.error.Error, ImportError) as error:
            said = " ".join(str(error).split())
            raise UserError(f"--env {name} cannot be made: {said}; give a Gymnasium id such as Hopper-v5") from error
    if env.spec is not None and env.spec.id != name.rpartition(":")[2]:
        raise UserError(f"--env {name} has no version; at present it would mean {env.spec.id}")
    return env


def _register_atari(name: str) -> None:
    try:
        import ale_py  # optional extra: atari
    except ModuleNotFoundError as error:
        raise UserError(f"--env {name} needs ale-py: pip install '.[atari]'") from error
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gymnasium.register_envs(ale_py)


def make_continuous(name: str, policy: str) -> gymnasium.Env:
    """An environment with vectors as observations, actions in [-1, 1] and a step limit.

    Raises:
        UserError: it has others, or none.

    """
    env = make(name)
    actions, observations = env.action_space, env.observation_space
    if isinstance(actions, Discrete):
        raise UserError(
            f"--policy {policy} needs continuous actions, and --env {name} has {actions.n} choices; "
            f"choices are recorded in Atari games only, such as {ATARI}Breakout-v5"
        )
    if not isinstance(actions, Box) or actions.shape is None or len(actions.shape) != 1:
        raise UserError(f"--env {name} has actions {actions}; a vector in [-1, 1] is needed")
    if not (np.all(actions.low == -1.0) and np.all(actions.high == 1.0)):
        raise UserError(f"--env {name} takes actions between {actions.low} and {actions.high}; [-1, 1] is needed")
    if not isinstance(observations, Box) or len(observations.shape) != 1:
        raise UserError(f"--env {name} has observations {observations}; a vector is needed")
    if env.spec is None or env.spec.max_episode_steps is None:
        raise UserError(f"--env {name} has no step limit, so that its episodes may never end; give one that has")
    return env


def record_type_of(env: gymnasium.Env) -> np.dtype:
    """The records of a continuous environment."""
    return record_type(env.observation_space.shape[0], env.action_space.shape[0])
