"""Scores: 100 x (return - random) / (reference - random), with the reference returns that the field uses.

MuJoCo: D4RL's REF_MIN_SCORE and REF_MAX_SCORE (Fu et al. 2020, d4rl/infos.py), measured on the mujoco-py v2
environments; returns from Gymnasium's v4 and v5 shift against them. Atari: random play and the human tester of Mnih et
al. 2015 (Extended Data Table 2), in the precision of dqn_zoo's atari_data.py.
"""

D4RL = {
    "hopper": (-20.272305, 3234.3),
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
}

HUMAN = {
    "alien": (227.8, 7127.7),
    "assault": (222.4, 742.0),
    "asterix": (210.0, 8503.3),
    "bankheist": (14.2, 753.1),
    "battlezone": (2360.0, 37187.5),
    "beamrider": (363.9, 16926.5),
    "boxing": (0.1, 12.1),
    "breakout": (1.7, 30.5),
    "enduro": (0.0, 860.5),
    "fishingderby": (-91.7, -38.7),
    "freeway": (0.0, 29.6),
    "frostbite": (65.2, 4334.7),
    "gopher": (257.6, 2412.5),
    "hero": (1027.0, 30826.4),
    "kungfumaster": (258.5, 22736.3),
    "mspacman": (307.3, 6951.6),
    "pong": (-20.7, 14.6),
    "qbert": (163.9, 13455.0),
    "roadrunner": (11.5, 7845.0),
    "seaquest": (68.4, 42054.7),
    "spaceinvaders": (148.0, 1668.7),
}


def normalised(env: str, mean_return: float) -> float | None:
    """The score in per cent, or nothing for an environment without references."""
    name = env.rsplit("/", 1)[-1].rsplit("-v", 1)[0].lower()
    references = HUMAN if env.startswith("ALE/") else D4RL
    if name not in references:
        return None
    random, reference = references[name]
    return 100.0 * (mean_return - random) / (reference - random)
