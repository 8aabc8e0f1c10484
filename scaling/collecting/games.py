"""Atari games as the DQN Replay Dataset saw them (Agarwal et al. 2020; Castro et al. 2018, Dopamine's preprocessing).

Four frames per step, sticky actions, the brighter of the last two frames, 84 x 84 greys. An episode ends when all
lives are gone or after the emulator's limit of frames.
"""

import numpy as np

from scaling.collecting.worlds import make
from scaling.layers.conv_encoder import SIDE

SKIP = 4
"""Frames for which an action is held."""
STICKY = 0.25
"""Chance that a frame repeats the action of the frame before (Machado et al. 2018)."""
HEIGHT, WIDTH = 210, 160
"""Pixels of the screen."""


def area_weights(before: int, after: int) -> np.ndarray:
    """(after, before), float32: the share of each old pixel in each new one when ``before`` pixels become ``after``."""
    size = before / after
    edges = np.arange(after + 1) * size
    pixels = np.arange(before)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.clip(overlap, 0.0, None) / size).astype(np.float32)


ROWS, COLUMNS = area_weights(HEIGHT, SIDE), area_weights(WIDTH, SIDE).T.copy()


def shrink(screen: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE), uint8: the mean grey of each area of a screen (HEIGHT, WIDTH)."""
    return np.rint(ROWS @ screen.astype(np.float32) @ COLUMNS).astype(np.uint8)


class Game:
    """One game under way; ``memory`` holds the console's RAM, 128 bytes, for scripted players."""

    def __init__(self, name: str, sticky: float = STICKY) -> None:
        self._env = make(name, frameskip=1, repeat_action_probability=sticky, obs_type="ram")
        self._ale = self._env.unwrapped.ale
        self._screens = np.zeros((2, HEIGHT, WIDTH), np.uint8)
        self.choices = int(self._env.action_space.n)
        self.meanings: list[str] = self._env.unwrapped.get_action_meanings()
        self.memory = np.zeros(128, np.uint8)

    def reset(self, seed: int) -> np.ndarray:
        """Begin an episode; the first picture."""
        self.memory, _ = self._env.reset(seed=seed)
        self._ale.getScreenGrayscale(self._screens[0])
        return shrink(self._screens[0])

    def step(self, action: int) -> tuple[np.ndarray, float, bool]:
        """The picture after the action, the score gained, and whether the episode is over."""
        gained, over = 0.0, False
        self._screens[:] = 0
        for frame in range(SKIP):
            self.memory, reward, terminated, truncated, _ = self._env.step(action)
            gained, over = gained + float(reward), terminated or truncated
            if over or frame >= SKIP - 2:
                self._ale.getScreenGrayscale(self._screens[frame % 2])
            if over:
                break
        return shrink(self._screens.max(axis=0)), gained, over

    def close(self) -> None:
        """End the emulator."""
        self._env.close()
