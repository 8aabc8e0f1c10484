"""One attempt at a run in a process that serves many: take it, train it, leave its row, whatever happens inside."""

import gc
import os
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from scaling import checkpoint, episodes, results
from scaling.checkpoint import Keeper, State
from scaling.claims import Claim
from scaling.errors import Diverged, Interrupted, TeamBroken, UserError
from scaling.root import Root, open_root
from scaling.runs import open_store
from scaling.spec import from_dict
from scaling.train import Outcome, forget_company, identity, train
from scaling.training import Report

PATIENCE = 900.0
"""Seconds for which a row waits for a full disk or a store that does not answer, before the attempt is given up."""

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Order:
    """A run to be done and all that a process needs for it; plain values, so that it travels."""

    run_id: str
    spec: dict[str, Any]
    digest: str
    """Of the dataset when the sweep began."""
    folder: str
    """Of the sweep; relative dataset paths start here."""
    root: str
    cache: str
    """Folder of data stores."""
    threads: int
    checkpoint_seconds: float
    keep_checkpoint: bool
    """Leave the state after the last update beside the row."""
    replaces: str | None = None
    """The time on the failed row that this attempt is to replace."""


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
        order, spec = self.order, from_dict(self.order.spec)
        prepare_process(order)
        store = open_store(spec, Path(order.folder))
        if store.digest != order.digest:
            raise UserError(f"{spec.data.path} has changed since the sweep began; start the sweep again")
        return train(spec, store, report, micro_batches=self.micro_batches, keeper=keeper, state=self.state)


class Team(Protocol):
    """Processes that compute one run together."""

    size: int

    def train(self, job: Job, report: Report, keeper: Keeper) -> Outcome:
        """The outcome of the run, of which this process is the first member."""


class Alone:
    """A team of this process alone."""

    size = 1

    def train(self, job: Job, report: Report, keeper: Keeper) -> Outcome:
        """The outcome of the run; what a launcher may have left in the environment would promise it company."""
        forget_company()
        return job.train(report, keeper)


def prepare_process(order: Order) -> None:
    """Set what belongs to the process, not to a run, and drop what an earlier run may have left."""
    torch.set_num_threads(order.threads)
    os.environ["SCALING_CACHE"] = order.cache
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def attempt(order: Order, team: Team, report: Report, stopping: Callable[[], bool]) -> bool:
    """Do the run unless somebody else does or did; true if it has its row now, from this attempt.

    An error inside the run is a failed row; an error around it, such as the death of a member of the team, is raised.
    A state that was saved is gone on from.
    """
    root, stop = open_root(order.root), _Stop(stopping)
    with Claim(root, order.run_id, stop.ask) as claim:

        def told(update: int, loss: float) -> None:
            claim.tell(update=update, loss=loss)
            report(update, loss)

        stop.ask()
        if stop.asked:  # before the run was begun
            return False
        try:
            if _persist(lambda: _has_ended(root, order) or not claim.take() or _has_ended(root, order), claim, stop):
                return False
            state = _persist(lambda: _saved(root, order), claim, stop)
            outcome = _train(order, root, team, told, _Keeper(root, order, claim, stop), state)
            _finish(root, order, outcome, claim, stop)
        except Interrupted:
            return False
    return True


def _has_ended(root: Root, order: Order) -> bool:
    row = results.read_row(root, order.run_id)
    return row is not None and not (row["status"] == results.FAILED and row["finished"] == order.replaces)


def _saved(root: Root, order: Order) -> State | None:
    """The state from which the run goes on, if there is one."""
    content = root.read(checkpoint.path_of(order.run_id))
    return checkpoint.unpack(order.run_id, content) if content else None


def _train(order: Order, root: Root, team: Team, report: Report, keeper: "_Keeper", state: State | None) -> Outcome:
    """The outcome, with ever smaller parts of a batch while memory does not suffice; a failed one for errors inside."""
    micro_batches = 1
    while True:
        try:
            return team.train(Job(order=order, micro_batches=micro_batches, state=state), report, keeper)
        except (Interrupted, TeamBroken):
            raise
        except (Diverged, UserError) as error:
            return failure(order, str(error))
        except Exception as error:
            if is_of_process(error):
                raise ChildProcessError(f"this process can train no more: {_reason(error)}") from error
            share = -(-order.spec["train"]["batch"] // team.size)
            if not is_out_of_memory(error) or micro_batches >= share:
                return failure(order, _reason(error))
            micro_batches = min(2 * micro_batches, share)
        prepare_process(order)  # outside of the handler, which holds on to the memory


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a tensor found no room."""
    said = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in said)


def is_of_process(error: BaseException) -> bool:
    """Whether an error leaves the process unfit for any run, as a fault on a GPU does."""
    return "CUDA error" in str(error) and not is_out_of_memory(error)


def _reason(error: BaseException) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {' '.join(str(error).split())} ({Path(where.filename).name}:{where.lineno})"


def failure(order: Order, reason: str) -> Outcome:
    """The outcome of a run that ended without numbers."""
    return Outcome({**identity(from_dict(order.spec), order.digest), "status": results.FAILED, "error": reason}, [])


def give_up(order: Order, reason: str) -> None:
    """Leave a failed row for a run whose processes died, unless it has ended or somebody else is at it."""
    root = open_root(order.root)
    with Claim(root, order.run_id) as claim:
        if claim.take() and not _has_ended(root, order):
            results.write_row(root, failure(order, reason).row)


def _finish(root: Root, order: Order, outcome: Outcome, claim: Claim, stop: "_Stop") -> None:
    """Leave the rows, the run's own last, since it says that all is there; then drop the checkpoint."""
    if outcome.episodes:
        _persist(lambda: episodes.write(root, order.run_id, outcome.episodes), claim, stop)
    _persist(lambda: None if _has_ended(root, order) else results.write_row(root, outcome.row), claim, stop)
    if not order.keep_checkpoint:
        with suppress(OSError):  # the row is there, and nobody looks at a checkpoint beside a row
            root.remove(checkpoint.path_of(order.run_id))


def _persist(action: Callable[[], Result], claim: Claim, stop: "_Stop") -> Result:
    """Act on the root, again and again while it has trouble, as the numbers cost more than the wait.

    Raises:
        Interrupted: the driver asked to stop meanwhile.
        OSError: the trouble lasted for too long.

    """
    begin, pause = time.monotonic(), 0.5
    while True:
        try:
            result = action()
            claim.tell(trouble=None)
            return result
        except OSError as error:
            claim.tell(trouble=f"the root cannot be read or written: {error.strerror or error}")
            stop.ask()
            if stop.asked:
                raise Interrupted from error
            if time.monotonic() - begin > PATIENCE:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 10.0)


class _Stop:
    """Whether the driver asked to stop; looked up once a second, so that it can be asked at every update."""

    def __init__(self, stopping: Callable[[], bool]) -> None:
        self.stopping, self.asked = stopping, False

    def ask(self) -> None:
        """Look it up."""
        self.asked = self.asked or self.stopping()


class _Keeper:
    """Saves the state of a run every so many seconds, and when the run is to stop."""

    def __init__(self, root: Root, order: Order, claim: Claim, stop: _Stop) -> None:
        self.root, self.order, self.claim, self.stop = root, order, claim, stop
        self.keeps_last = order.keep_checkpoint
        self.saved = time.monotonic()

    def wants(self) -> bool:
        """Whether the interval is over or the run is to end."""
        due = time.monotonic() - self.saved > self.order.checkpoint_seconds
        return due or self.stop.asked or self.claim.lost

    def keep(self, state: State) -> None:
        """Save; a root in trouble costs the checkpoint, not the run.

        Raises:
            Interrupted: the driver asked to stop, or somebody else has the run now.

        """
        if self.claim.lost:
            raise Interrupted
        self.saved = time.monotonic()
        self.claim.tell(update=state["done"])
        try:
            self.root.write(checkpoint.path_of(self.order.run_id), checkpoint.pack(self.order.run_id, state))
        except OSError as error:
            self.claim.tell(trouble=f"cannot save a checkpoint: {error.strerror or error}")
        if self.stop.asked:
            raise Interrupted
