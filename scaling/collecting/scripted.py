"""Scripted players: a position read from the console's memory, a choice of action."""

from collections.abc import Callable

import numpy as np

from scaling.collecting.games import Game
from scaling.errors import UserError

Player = Callable[[Game, np.random.Generator], int]

RANDOM_SHARE = 0.1
"""Actions of a scripted player that are random, so that its episodes differ."""
PADDLE, BALL_X, BALL_Y = 72, 99, 101
"""Addresses in Breakout's memory (Anand et al. 2019, the AtariARI annotations)."""
MIDDLE, SLACK = 8, 3
"""Pixels from the paddle's position to its middle, and how far off the ball may be."""


def player(policy: str, name: str) -> Player:
    """The player that ``policy`` names, for the game ``name``.

    Raises:
        UserError: there is no script for the game.

    """
    if policy == "random":
        return uniform
    if "/Breakout-" not in name:
        raise UserError(f"--policy track plays Breakout only, not {name}; use --policy random")
    return track


def uniform(game: Game, generator: np.random.Generator) -> int:
    """Any choice."""
    return int(generator.integers(game.choices))


def track(game: Game, generator: np.random.Generator) -> int:
    """Breakout: serve when there is no ball, else move the paddle under it."""
    if generator.random() < RANDOM_SHARE:
        return uniform(game, generator)
    if game.memory[BALL_Y] == 0:
        return game.meanings.index("FIRE")
    distance = int(game.memory[BALL_X]) - int(game.memory[PADDLE]) - MIDDLE
    if abs(distance) <= SLACK:
        return game.meanings.index("NOOP")
    return game.meanings.index("RIGHT" if distance > 0 else "LEFT")
