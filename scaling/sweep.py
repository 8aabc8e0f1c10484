"""Hand the unfinished runs of a sweep to Ray Tune; the truth about each is its row in the root."""

import json
import math
import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any, Protocol

# Tune reads these when it is imported or run: no result folders in the home directory, no tables on the terminal, no
# state of its own to restore, and our handlers of signals.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", str(10**9))
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")

from scaling import garbage

with garbage.paused():
    import ray
    from ray import tune
    from ray.tune.execution import class_cache
    from ray.tune.progress_reporter import TrialProgressCallback
    from ray.tune.search import Searcher
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from scaling import ending, results
    from scaling.attempt import Alone, Team, give_up
    from scaling.desk import open_desk
    from scaling.driver import Watcher
    from scaling.errors import UserError
    from scaling.local_ray import local_ray, running_ray, told_when_lost
    from scaling.order import Order
    from scaling.pack import attempt_together
    from scaling.resources import LOCAL, Resources, available_cpus
    from scaling.root import open_root
    from scaling.team import Together
    from scaling.work import Work

# A variable that PyTorch Lightning wants: with one, trials could not begin in the processes that Ray has ready.
class_cache.DEFAULT_ENV_VARS.clear()

REPORT_SECONDS = 2.0
"""A process speaks up about this often; each word waits for the driver."""

NEVER = 10**9

ENDS = ("loss", "loss_best", "score", "N", "D", "C")
"""Columns of a row that are shown to those who watch."""


class Asking(Protocol):
    """Says whether the user wants the sweep to stop."""

    @property
    def asked(self) -> bool:
        """Whether the sweep is to stop."""

    def keep_listening(self) -> None:
        """Called now and then from the main thread."""


def run(
    work: Work,
    orders: dict[str, Order],
    resources: Resources,
    watcher: Watcher,
    callbacks: list[tune.Callback],
    interrupts: Asking,
) -> None:
    """Have the runs of ``work`` done; returns when it is over or the user interrupts.

    Raises:
        UserError: there is no such Ray, or it is too small for one run.

    """
    with _ray(resources):
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        drive(work, orders, resources, watcher, callbacks, interrupts, open_desk(here))


def drive(
    work: Work,
    orders: dict[str, Order],
    resources: Resources,
    watcher: Watcher,
    callbacks: list[tune.Callback],
    interrupts: Asking,
    desk: Any,
) -> None:
    """The same in a process of a Ray cluster; runs ask at the ``desk`` whether to stop."""
    slots = _slots(resources)
    storage = tempfile.mkdtemp(prefix="scaling-tune-")
    bundle = {"CPU": resources.threads, "GPU": resources.gpus}
    queue = _Queue(work, orders, interrupts, desk)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_trial, desk=desk), tune.PlacementGroupFactory([bundle] * resources.workers)
        ),
        param_space={"team": [resources.workers, resources.threads, resources.gpus], "watched": bool(callbacks)},
        tune_config=tune.TuneConfig(
            num_samples=-1,
            search_alg=queue,
            reuse_actors=True,
            max_concurrent_trials=min(slots, resources.max_concurrent or slots),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=storage,
            verbose=0,
            stop=_End(queue),
            failure_config=tune.FailureConfig(max_failures=resources.retries),
            callbacks=[_Callback(queue, watcher, resources.retries), *callbacks],
        ),
    )
    try:
        with told_when_lost():
            tuner.fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)


@contextmanager
def _ray(resources: Resources) -> Iterator[None]:
    if resources.address == LOCAL:
        with local_ray(resources.cpus or available_cpus()):
            yield
    else:
        with running_ray(resources.address):
            yield


def _slots(resources: Resources) -> int:
    """Runs that Ray has room for at a time; where machines come on demand, the number that the user names."""
    if resources.max_concurrent and resources.address != LOCAL:
        return resources.max_concurrent
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    processes = sum(_room(node, resources.threads, resources.gpus) for node in nodes)
    if processes < resources.workers:
        total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
        gpus = f" and {resources.gpus:g} GPU(s)" if resources.gpus else ""
        raise UserError(
            f"one run needs {resources.workers} process(es) with {resources.threads} core(s){gpus} each; "
            f"Ray has {total['CPU']:g} core(s) and {total['GPU']:g} GPU(s) on {len(nodes)} machine(s); "
            "lower --workers, --threads or --gpus; where machines are added on demand, say --max-concurrent"
        )
    by_cores = (resources.cpus or NEVER) // (resources.threads * resources.workers)
    return max(1, min(processes // resources.workers, by_cores))


def _room(node: dict[str, float], threads: int, gpus: float) -> int:
    by_cores = int(node.get("CPU", 0) // threads)
    return min(by_cores, int(node.get("GPU", 0) / gpus + 1e-9)) if gpus else by_cores


_teams: dict[tuple[int, int, float], Team] = {}
"""The team of this worker process, kept from trial to trial."""


def _trial(config: dict[str, Any], desk: Any) -> None:
    """One attempt at a run, in a worker process that serves many."""
    orders = [Order(**order) for order in json.loads(config["orders"])]
    shape = tuple(config["team"])
    said: dict[str, float] = dict.fromkeys(config["run_ids"], time.monotonic())

    def report(run_id: str, update: int, loss: float) -> None:
        if ending.has_begun():  # nobody listens any more, and Tune would wait for an answer
            return
        if time.monotonic() - said[run_id] > REPORT_SECONDS * len(orders):
            tune.report({"run_id": run_id, "update": update, "loss": loss})
            said[run_id] = time.monotonic()

    def stopping() -> bool:
        try:
            return bool(ray.get(desk.is_stopped.remote(), timeout=5.0))
        except (ray.exceptions.GetTimeoutError, ray.exceptions.ActorUnavailableError):
            return False
        except ray.exceptions.RayError:  # the driver is gone
            return True

    team = Alone() if shape[0] == 1 else _teams.setdefault(shape, Together(*shape))
    with ending.awaited():
        attempt_together(orders, team, report, stopping)
    if config["watched"]:
        for order in orders:
            _report_end(order)


def _report_end(order: Order) -> None:
    """The numbers of the row, for whoever watches."""
    row = results.read_row(open_root(order.root), order.run_id)
    if row is not None and row["status"] == results.DONE:
        ends = {"run_id": order.run_id, "update": row["updates"]}
        tune.report({**ends, **{name: row[name] for name in ENDS if row[name] is not None}})


class _Queue(Searcher):
    """Gives Tune the next run when it has room for one."""

    def __init__(self, work: Work, orders: dict[str, Order], interrupts: Asking, desk: Any) -> None:
        super().__init__()
        self.work, self.orders, self.interrupts, self.desk = work, orders, interrupts, desk
        self.stopped, self.told = False, -math.inf
        self.is_busy = True
        """Whether runs are under way, as far as that matters once they are to stop."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Queue":
        """Tune copies its settings; there is but one queue."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune pickles its settings for a restoration that is never asked for."""
        return Searcher, ()

    def suggest(self, trial_id: str) -> Any:
        """The next run, nothing for now, or the end."""
        self.listen()
        if self.stopped or self.work.is_over():
            return Searcher.FINISHED
        names = self.work.next_pack()
        orders = [asdict(self.orders[name]) for name in names]
        return {"run_ids": names, "orders": json.dumps(orders)} if names else None

    def listen(self) -> None:
        """Tell the runs when they are to stop."""
        self.interrupts.keep_listening()
        self.stopped = self.stopped or self.interrupts.asked or self.work.given_up is not None
        if self.stopped and time.monotonic() - self.told > 1.0:  # again, as the desk may be a new one
            self.told = time.monotonic()
            self.desk.stop.remote()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Told to the work by the callback, which knows the run."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing to save: what is done is in the root."""


class _End(tune.Stopper):
    """Ends the sweep when it is to stop and nothing runs any more, though runs may wait for room."""

    def __init__(self, queue: _Queue) -> None:
        self.queue = queue

    def __deepcopy__(self, memo: dict[int, Any]) -> "_End":
        """Tune copies its settings; there is but one queue."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune pickles its settings for a restoration that is never asked for."""
        return tune.stopper.NoopStopper, ()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No run is ended from here: it ends by itself when it has saved its state."""
        return False

    def stop_all(self) -> bool:
        """Whether to end."""
        return self.queue.stopped and not self.queue.is_busy


def _reason(trial: Any, deaths: int) -> str:
    """Why a run has come to nothing, as Tune knows it."""
    cause = getattr(trial.get_pickled_error(), "cause", None)
    if isinstance(cause, Exception):
        return f"{deaths} attempts failed: {type(cause).__name__}: {' '.join(str(cause).split())}"
    return f"the worker process died {deaths} times; out of memory or killed"


class _Callback(TrialProgressCallback):
    """Passes Tune's events on, and turns a worker's death into a failed row.

    Derived from Tune's own printer because Tune adds that one unless it finds one among the callbacks.
    """

    def __init__(self, queue: _Queue, watcher: Watcher, retries: int) -> None:
        super().__init__()
        self._queue, self._watcher, self._retries = queue, watcher, retries
        self._deaths: defaultdict[str, set[int]] = defaultdict(set)
        """Of processes that had a run, or a pack, of which the first run is named: the steps of Tune's at which they
        died, as it tells twice of one that died between two trials."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; nothing here is worth restoring, since the rows are on disk."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Several times a second."""
        self._queue.listen()
        if self._queue.stopped:
            self._queue.is_busy = any(trial.status == trial.RUNNING for trial in trials)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A point of a curve."""
        if "update" in result:
            self._watcher.progress(result["run_id"], result["update"], result["loss"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Runs have ended, or were left to somebody else."""
        self._came_back(trial.config["run_ids"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """An attempt ended with an error around the runs, such as the death of their process; Tune tries again."""
        self._deaths[trial.config["run_ids"][0]].add(iteration)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The same, and Tune tries no more: after ``retries``, or where the process died between two trials."""
        names = trial.config["run_ids"]
        self._deaths[names[0]].add(iteration)
        deaths = len(self._deaths[names[0]])
        self._queue.listen()
        if not self._queue.stopped and deaths > self._retries:  # whoever stops the sweep may end its processes too
            self._give_up(names, _reason(trial, deaths))
        self._came_back(names)  # without a row they are offered again

    def _give_up(self, names: list[str], reason: str) -> None:
        if len(names) > 1:  # one of them may be to blame, or their number
            self._queue.work.separate(names)
            del self._deaths[names[0]]
            return
        with suppress(OSError):
            give_up(self._queue.orders[names[0]], reason)

    def _came_back(self, names: list[str]) -> None:
        for name in names:
            row = self._queue.work.came_back(name)
            if row:
                self._watcher.ended(name, row["loss_best"])
