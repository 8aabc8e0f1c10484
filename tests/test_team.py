"""Processes that come together to train, and fail to."""

import os
import sys
import time
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from scaling import team
from scaling.errors import TeamBroken
from scaling.local_ray import local_ray


class Dying:
    """A member whose process dies on its way to the others."""

    def join(self, *told: Any) -> None:
        os._exit(1)


def gather_with_dying() -> float:
    """Seconds after which a team whose other member dies gives up."""
    team._Member = Dying  # type: ignore[misc,assignment]
    begin = time.monotonic()
    with pytest.raises(TeamBroken, match="could not be brought together"):
        team.Together(2, 1, 0.0)._gather()
    return time.monotonic() - begin


def test_a_member_that_dies_before_the_team_is_together_is_not_waited_for():
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # other processes do not find tests
    with local_ray(2):
        group = placement_group([{"CPU": 1}] * 2)
        there = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
        task = ray.remote(num_cpus=1, max_retries=0)(gather_with_dying)
        assert ray.get(task.options(scheduling_strategy=there).remote(), timeout=120.0) < 60.0
