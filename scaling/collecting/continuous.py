"""``scaling data collect`` for continuous actions: train, choose checkpoints, write the files."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from scaling.collecting import sets
from scaling.collecting.actors import Uniform
from scaling.collecting.d4rl_file import Content
from scaling.collecting.place import Request
from scaling.collecting.sets import Rollouts
from scaling.collecting.shown import Shown
from scaling.collecting.worlds import make_continuous, record_type_of
from scaling.errors import UserError


def check(request: Request) -> np.dtype:
    """The records of the environment.

    Raises:
        UserError: it cannot be collected from in this way.

    """
    if request.policy == "sac" and find_spec("stable_baselines3") is None:
        raise UserError("--policy sac needs stable-baselines3: pip install '.[collect]'")
    env = make_continuous(request.env, request.policy)
    kind = record_type_of(env)
    env.close()
    return kind


def collect_random(folder: Path, request: Request, rows: int, workers: int, shown: Shown) -> dict[str, Any]:
    """Write uniformly random actions; the end of the manifest."""
    kind = check(request)
    wanted = Rollouts("random", _uniform(kind), "uniform", rows)
    content = sets.write_rollouts(folder, wanted, request, kind, workers, shown)
    return {"files": {"random.hdf5": vars(content)}}


def collect_sac(
    folder: Path, request: Request, steps: int, rollout_steps: int, workers: int, shown: Shown
) -> dict[str, Any]:
    """Train and write all five files; the end of the manifest."""
    from scaling.collecting.training import Training, actor_of  # torch takes seconds; random actions need none

    kind = check(request)
    course = Training(folder, request, steps).run(shown)
    medium, expert = sets.medium(course), sets.expert(course)
    rollouts = (
        Rollouts("random", _uniform(kind), "uniform", rollout_steps),
        Rollouts("medium", actor_of(folder, medium), f"checkpoint {medium}", rollout_steps),
        Rollouts("expert", actor_of(folder, expert), f"checkpoint {expert}", rollout_steps),
    )
    files: dict[str, Content] = {
        "medium-replay": sets.write_replay(folder, "medium-replay", request, kind, medium),
        "full-replay": sets.write_replay(folder, "full-replay", request, kind, steps),
        **{wanted.name: sets.write_rollouts(folder, wanted, request, kind, workers, shown) for wanted in rollouts},
    }
    if not sets.learned(course):
        shown.say(
            f"training never got anywhere: no checkpoint is clearly better than random actions "
            f"({course.random_return[0]:,.1f}); medium and expert are names only; more --steps may help"
        )
    return {
        "medium_checkpoint": medium,
        "expert_checkpoint": expert,
        "learned": sets.learned(course),
        "random_return": course.random_return[0],
        "checkpoints": course.checkpoints,
        "files": {f"{name}.hdf5": vars(content) for name, content in files.items()},
    }


def _uniform(kind: np.dtype) -> Uniform:
    return Uniform(kind["actions"].shape[0])
