"""Normalised scores: 100 x (return - random) / (expert - random), with D4RL's reference returns.

The references were measured on the mujoco-py v2 environments; returns from Gymnasium's v4 and v5 shift against them.
From the table REF_MIN_SCORE / REF_MAX_SCORE of d4rl/infos.py (Fu et al. 2020).
"""

REFERENCES = {
    "hopper": (-20.272305, 3234.3),
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
}


def normalised(env: str, mean_return: float) -> float | None:
    """The score in per cent, or nothing for an environment without references."""
    name = env.rsplit("/", 1)[-1].rsplit("-v", 1)[0].lower()
    if name not in REFERENCES:
        return None
    random, expert = REFERENCES[name]
    return 100.0 * (mean_return - random) / (expert - random)
