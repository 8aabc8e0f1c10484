"""Environments that a network is played on, many episodes in lockstep.

MuJoCo and other Gymnasium environments advance one after the other in this process, which on few cores is faster than a
process for each; Atari through the emulator's own vector environment, one frame at a time, greyscale, 84 x 84, the
largest of the last two of every four frames, ends with the game and not with a life.
"""

import warnings
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from scaling import plug
from scaling.errors import UserError
from scaling.spec import RunSpec, Space

OWN = "own"
"""The environment of the task that generated the data."""
ALE = "ALE/"
FRAME_SKIP = 4


class Stage(Protocol):
    """Episodes side by side; an ended one may start anew and is to be ignored."""

    def reset(self, seeds: list[int]) -> np.ndarray:
        """(episode, ...) first observations."""

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Observations, rewards, and whether each episode has ended."""

    def close(self) -> None:
        """Free what the environments hold."""


class GymStage:
    """Copies of one Gymnasium environment."""

    def __init__(self, spec: RunSpec, count: int) -> None:
        self.envs = SyncVectorEnv([lambda: _make(spec)] * count, autoreset_mode=AutoresetMode.NEXT_STEP)

    def reset(self, seeds: list[int]) -> np.ndarray:
        """First observations."""
        observed: np.ndarray = self.envs.reset(seed=seeds)[0]
        return observed

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Observations, rewards, and whether each episode has ended."""
        observed, reward, terminated, truncated, _ = self.envs.step(actions)
        return observed, reward, terminated | truncated

    def close(self) -> None:
        """Free what the environments hold."""
        self.envs.close()


class AtariStage:
    """Copies of one game."""

    def __init__(self, spec: RunSpec, count: int) -> None:
        self.envs = _atari(spec, count)

    def reset(self, seeds: list[int]) -> np.ndarray:
        """First frames."""
        frames: np.ndarray = self.envs.reset(seed=np.array(seeds))[0]
        return frames[:, 0]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Frames, rewards, and whether each game is over."""
        frames, reward, terminated, truncated, _ = self.envs.step(actions)
        return frames[:, 0], reward.astype(np.float64), terminated | truncated

    def close(self) -> None:
        """Free what the emulators hold."""
        self.envs.close()


def stage(spec: RunSpec, count: int) -> Stage:
    """So many episodes of the run's environment."""
    assert spec.evaluate.env is not None
    return AtariStage(spec, count) if spec.evaluate.env.startswith(ALE) else GymStage(spec, count)


def check_env(spec: RunSpec, space: Space) -> None:
    """Refuse an environment that does not exist or does not fit the dataset.

    Raises:
        UserError: with the environment's id and the sizes on both sides.

    """
    name = spec.evaluate.env
    if name is None:
        return
    if space.image != name.startswith(ALE):
        shown = "pictures" if space.image else "vectors"
        raise UserError(f"evaluate.env {name} does not show what the dataset does, {shown}: Atari is {ALE}Game-v5")
    env = _atari(spec, 1) if space.image else _made(spec)
    observed = env.single_observation_space.shape[1:] if space.image else env.observation_space.shape
    acts = env.single_action_space if space.image else env.action_space
    env.close()
    choices = isinstance(acts, gymnasium.spaces.Discrete)
    size = acts.n if choices else acts.shape
    wanted = space.action if space.discrete else (space.action,)
    shape = (space.state, space.state) if space.image else (space.state,)
    if observed != shape or choices != space.discrete or size != wanted:
        raise UserError(
            f"evaluate.env {name} has states {observed} and actions {acts if choices else acts.shape}; "
            f"the dataset has {shape} and {wanted}"
        )
    if not choices and not (np.all(acts.low == -1.0) and np.all(acts.high == 1.0)):
        raise UserError(
            f"evaluate.env {name} takes actions between {acts.low} and {acts.high}; only [-1, 1] is supported"
        )


def _made(spec: RunSpec) -> gymnasium.Env:
    try:
        return _make(spec)
    except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
        raise UserError(f"evaluate.env {spec.evaluate.env!r}: {' '.join(str(error).split())}") from error


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


def _atari(spec: RunSpec, count: int) -> Any:
    try:
        from ale_py.roms import get_all_rom_ids  # optional extra: atari
        from ale_py.vector_env import AtariVectorEnv  # optional extra: atari
    except ModuleNotFoundError as error:
        raise UserError(f"evaluate.env {spec.evaluate.env} needs the emulator: pip install '.[atari]'") from error
    assert spec.evaluate.env is not None
    wanted = spec.evaluate.env.removeprefix(ALE).rsplit("-v", 1)[0].lower()
    games = {game.replace("_", ""): game for game in get_all_rom_ids()}
    if wanted not in games:
        raise UserError(
            f"evaluate.env {spec.evaluate.env}: the emulator has no such game{plug.suggestion(wanted, list(games))}; "
            f"write {ALE}Breakout-v5"
        )
    return AtariVectorEnv(
        games[wanted],
        count,
        num_threads=torch.get_num_threads(),
        stack_num=1,
        frameskip=FRAME_SKIP,
        max_num_frames_per_episode=FRAME_SKIP * spec.evaluate.max_steps,
        repeat_action_probability=spec.evaluate.sticky,
        noop_max=spec.evaluate.noops,
        reward_clipping=False,
        use_fire_reset=False,
    )
