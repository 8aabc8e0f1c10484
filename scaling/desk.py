"""Where runs ask whether to stop; a module of its own, so that the process of it loads nothing else."""

from typing import Any

import ray


class Desk:
    """Where runs ask whether to stop."""

    def __init__(self) -> None:
        self.stopped = False

    def stop(self) -> None:
        """From now on, yes."""
        self.stopped = True

    def is_stopped(self) -> bool:
        """Whether to stop."""
        return self.stopped


def open_desk(place: Any = "DEFAULT") -> Any:
    """A desk that is there again when its process or machine is lost; best not on a machine that comes and goes.

    Runs take a desk that is gone for the end of the driver, so without another one they would all stop, for ever.
    """
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Desk)
    return actor.options(scheduling_strategy=place).remote()
