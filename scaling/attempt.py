"""One attempt at a run in a process that serves many: take it, train it, leave its row, whatever happens inside."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from scaling import results
from scaling.checkpoint import Keeper, State
from scaling.errors import Diverged, Interrupted, TeamBroken, UserError
from scaling.held import Held, Stop
from scaling.order import Order, failure, prepare_process, store_of
from scaling.population import Ended, Entry, train_together
from scaling.root import open_root
from scaling.spec import from_dict
from scaling.train import Outcome, forget_company, train
from scaling.training import Report, silent


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the processes of a run are to compute together."""

    order: Order
    micro_batches: int
    state: State | None

    def train(self, report: Report, keeper: Keeper | None) -> Outcome:
        """The run's rows, in a process that may have served other runs.

        Raises:
            UserError: the dataset changed since the sweep began, or whatever :func:`scaling.train.train` refuses.

        """
        prepare_process(self.order)
        spec, store = from_dict(self.order.spec), store_of(self.order)
        return train(spec, store, report, micro_batches=self.micro_batches, keeper=keeper, state=self.state)


@dataclass(frozen=True, kw_only=True)
class PackJob:
    """What the processes of a pack are to compute together."""

    orders: Sequence[Order]
    states: Sequence[State | None]

    def train(self, reports: Sequence[Report], keepers: Sequence[Keeper]) -> Iterator[tuple[int, Ended]]:
        """Each run's number and how it ended, in a process that may have served other runs.

        Raises:
            UserError: a dataset changed since the sweep began.

        """
        prepare_process(self.orders[0])
        each = zip(self.orders, self.states, reports, keepers, strict=True)
        yield from train_together(
            [
                Entry(spec=from_dict(order.spec), store=store_of(order), report=report, keeper=keeper, state=state)
                for order, state, report, keeper in each
            ]
        )


class Team(Protocol):
    """Processes that compute runs together."""

    size: int

    def train(self, job: Job, report: Report, keeper: Keeper) -> Outcome:
        """The outcome of the run, of which this process is the first member."""

    def train_pack(
        self, job: PackJob, reports: Sequence[Report], keepers: Sequence[Keeper]
    ) -> Iterator[tuple[int, Ended]]:
        """How the runs of a pack ended, as soon as each has."""


class Alone:
    """A team of this process alone."""

    size = 1

    def train(self, job: Job, report: Report, keeper: Keeper) -> Outcome:
        """The outcome of the run; what a launcher may have left in the environment would promise it company."""
        forget_company()
        return job.train(report, keeper)

    def train_pack(
        self, job: PackJob, reports: Sequence[Report], keepers: Sequence[Keeper]
    ) -> Iterator[tuple[int, Ended]]:
        """How the runs of a pack ended, as soon as each has."""
        forget_company()
        yield from job.train(reports, keepers)


def attempt(order: Order, team: Team, report: Report, stopping: Callable[[], bool]) -> bool:
    """Do the run unless somebody else does or did; true if it has its row now, from this attempt.

    An error inside the run is a failed row; an error around it, such as the death of a member of the team, is raised.
    A state that was saved is gone on from.
    """
    stop = Stop(stopping)
    with Held(open_root(order.root), order, stop, report) as held:
        stop.ask()
        if stop.asked:  # before the run was begun
            return False
        try:
            if not held.take():
                return False
            carry_out(held, team)
        except Interrupted:
            return False
    return True


def carry_out(held: Held, team: Team) -> None:
    """Do a run that was taken.

    Raises:
        Interrupted: the run is to stop, or somebody else has it now.

    """
    held.finish(_train(held, team, held.saved()))


def _train(held: Held, team: Team, state: State | None) -> Outcome:
    """The outcome, with ever smaller parts of a batch while memory does not suffice; a failed one for errors inside."""
    order, micro_batches = held.order, 1
    while True:
        try:
            return team.train(Job(order=order, micro_batches=micro_batches, state=state), held.report, held)
        except (Interrupted, TeamBroken):
            raise
        except (Diverged, UserError) as error:
            return failure(order, reason(error))
        except Exception as error:
            if is_of_process(error):
                raise ChildProcessError(f"this process can train no more: {reason(error)}") from error
            share = -(-order.spec["train"]["batch"] // team.size)
            if not is_out_of_memory(error) or micro_batches >= share:
                return failure(order, reason(error))
            micro_batches = min(2 * micro_batches, share)
        prepare_process(order)  # outside of the handler, which holds on to the memory


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a tensor found no room."""
    said = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in said)


def is_of_process(error: BaseException) -> bool:
    """Whether an error leaves the process unfit for any run, as a fault on a GPU does."""
    return "CUDA error" in str(error) and not is_out_of_memory(error)


def reason(error: BaseException) -> str:
    """An error in one line, with the place it came from where it was not foreseen."""
    if isinstance(error, Diverged | UserError):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {' '.join(str(error).split())} ({Path(where.filename).name}:{where.lineno})"


def give_up(order: Order, reason: str) -> None:
    """Leave a failed row for a run whose processes died, unless it has ended or somebody else is at it."""
    root = open_root(order.root)
    with Held(root, order, Stop(lambda: False), silent) as held:
        if held.claim.take() and not held.has_ended():
            results.write_row(root, failure(order, reason).row)
