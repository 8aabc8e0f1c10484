"""Steps per second of collecting, each on one core: training, rollouts of a trained policy, a scripted game.

python -m benchmarks.collect [--env Hopper-v5] [--steps 10_000]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from scaling.collecting.place import Request
from scaling.collecting.replay_log import Block
from scaling.collecting.rollouts import Shard
from scaling.collecting.shown import Shown
from scaling.collecting.training import WARMUP, Training


def measure(env: str, steps: int, folder: Path) -> dict[str, float]:
    """Steps per second by what is done; of the training without its first, random steps."""
    request = Request(env=env, policy="sac", seed=0, checkpoint_every=10_000)
    quiet = Shown(Console(quiet=True))
    Training(folder, request, WARMUP).run(quiet)
    training = Training(folder, request, WARMUP + steps)
    shard = Shard(folder / "shard.npy", env, training.learner.actor(), (0,), steps)
    block = Block(folder / "block", "ALE/Breakout-v5", "track", (0,), steps)
    return {
        "training": steps / seconds(lambda: training.run(quiet)),
        "rollouts": steps / seconds(shard.make),
        "Breakout, script": steps / seconds(block.make),
    }


def seconds(call: Callable[[], object]) -> float:
    """How long the call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main(arguments: list[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="Hopper-v5")
    parser.add_argument("--steps", type=int, default=10_000)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.env, options.steps, Path(folder))
    print("| what | steps/s |\n|---|---|")
    for name, speed in found.items():
        print(f"| {name} | {speed:,.0f} |")


if __name__ == "__main__":
    main()
