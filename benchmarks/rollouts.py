"""Rollouts of all episodes in lockstep against the same episodes one at a time.

    python -m benchmarks.rollouts [--episodes 100] [--alone 3] [--width 128] [--threads 2]

Both see Hopper through a window and through the recurrent state. A network without training falls at once, so the
episodes are made to last: the environment does not end when the robot falls. Times are per episode and in turns.
"""

import argparse
import dataclasses
import sys

import gymnasium
import numpy as np
import torch

from benchmarks.timing import in_turns, table
from scaling import plug
from scaling.rollouts import play
from scaling.spec import EvaluateSpec, ModelSpec, RunSpec, Space
from scaling.windows import Normaliser

HOPPER = Space(state=11, action=3)
ENDLESS = "EndlessHopper-v0"


def main(arguments: list[str]) -> None:
    """Print seconds per episode and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--alone", type=int, default=3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    gymnasium.register(
        ENDLESS,
        "gymnasium.envs.mujoco.hopper_v5:HopperEnv",
        max_episode_steps=1000,
        kwargs={"terminate_when_unhealthy": False},
    )
    normalise = Normaliser(np.zeros(11), np.ones(11))
    for rollout in ("window", "recurrent"):
        spec = RunSpec(
            model=ModelSpec(width=options.width),
            evaluate=EvaluateSpec(env=ENDLESS, targets=(3600.0,), max_steps=options.steps, rollout=rollout),
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = plug.load("models", spec.model.kind).Model(spec.model, HOPPER)

        def played(count: int, spec: RunSpec = spec, network: torch.nn.Module = network) -> None:
            asked = dataclasses.replace(spec.evaluate, episodes=count)
            play(network, dataclasses.replace(spec, evaluate=asked), HOPPER, normalise, torch.device("cpu"))

        def alone_played(count: int) -> None:
            for _ in range(count):
                played(1)

        took = in_turns(
            {
                f"{options.episodes} in lockstep": lambda: played(options.episodes),
                "one at a time": lambda: alone_played(options.alone),
            },
            options.rounds,
        )
        lockstep, alone = took.values()
        each = {f"{options.episodes} in lockstep": lockstep / options.episodes, "one at a time": alone / options.alone}
        title = f"An episode of {options.steps} steps of Hopper, width {options.width}, through the {rollout}"
        print(table(title, each, next(iter(each))))


if __name__ == "__main__":
    main(sys.argv[1:])
