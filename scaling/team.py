"""Several processes, anywhere in a Ray cluster, that train runs together and stay together from run to run.

A trial reserves a placement group with a bundle per process, all or none, so trials never wait for each other's parts.
The trial's own process is the first member; the others are actors in the other bundles, and all are ranks of one
process group (gloo, or NCCL on GPUs) through which Accelerate shares the gradients.
"""

import datetime
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any

import ray
import torch
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import distributed
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from scaling.attempt import Job, PackJob, is_out_of_memory
from scaling.checkpoint import Keeper, Nobody
from scaling.errors import Diverged, Interrupted, Parted, TeamBroken, UserError
from scaling.population import Ended
from scaling.train import Outcome
from scaling.training import Report, silent

GRACE = 10.0
"""Seconds in which the death of a member is known everywhere."""
LONG = datetime.timedelta(days=1)
"""Patience with the first process, which alone plays episodes and writes rows; of a death Ray tells."""
LOOK = 0.2
"""Seconds between two looks at those who are to join a team."""

SIOCGIFADDR = 0x8915


class Together:
    """The team whose first member is this process; its members are found when they are first needed."""

    def __init__(self, size: int, threads: int, gpus: float) -> None:
        self.size, self.threads, self.gpus = size, threads, gpus
        self.members: list[Any] = []
        self.failure: ray.exceptions.RayError | None = None
        """The first of a member at the run under way."""

    def train(self, job: Job, report: Report, keeper: Keeper) -> Outcome:
        """The outcome of the run.

        Raises:
            TeamBroken: a member died.
            Exception: whatever the run raised in any process.

        """
        with self._at_work(job):
            return job.train(report, keeper)

    def train_pack(
        self, job: PackJob, reports: Sequence[Report], keepers: Sequence[Keeper]
    ) -> Iterator[tuple[int, Ended]]:
        """How the runs of a pack ended, as soon as each has.

        Raises:
            TeamBroken: a member died.
            Parted: one of the runs was interrupted.
            Exception: whatever concerned all of them, in any process.

        """
        with self._at_work(job):
            yield from job.train(reports, keepers)

    @contextmanager
    def _at_work(self, job: Job | PackJob) -> Iterator[None]:
        """Have the other members do their parts of what this process does meanwhile."""
        if not self.members:
            self._gather()
        self.failure = None
        told = ray.put(job)
        working = [member.train.remote(told) for member in self.members]
        watch = threading.Thread(target=self._watch, args=(working, self.members), daemon=True)
        watch.start()
        try:
            yield
        except BaseException as error:
            known = isinstance(error, Interrupted | Parted | Diverged | UserError | GeneratorExit)
            reason = error if known else self._first(working, error)
            self._part()
            if reason is error:
                raise
            raise reason from error
        if len(ray.wait(working, num_returns=len(working), timeout=GRACE)[0]) < len(working):
            self._part()  # somebody dawdles; the outcome is there

    def _gather(self) -> None:
        """Start the members and the process group."""
        group = get_current_placement_group()
        actor = ray.remote(num_cpus=self.threads, num_gpus=self.gpus)(_Member)
        self.members = [
            actor.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, bundle)).remote()
            for bundle in range(1, self.size)
        ]
        host = ray.util.get_node_ip_address()
        store, port = _store(host, self.size)
        joining = [member.join.remote(host, port, rank, self.size) for rank, member in enumerate(self.members, start=1)]
        try:
            _all(_begin(lambda: _join(store, 0, self.size)), joining)
        except (ray.exceptions.RayError, RuntimeError) as error:
            self._part()
            raise TeamBroken(f"the {self.size} processes of a run could not be brought together: {error}") from error

    def _watch(self, working: list[Any], members: list[Any]) -> None:
        """When a member fails, end all of them: whoever waits for them in a collective operation is set free.

        Once there are other members, it is of an earlier job, and means nothing.
        """
        left = working
        while left:
            done, left = ray.wait(left)
            try:
                ray.get(done)
            except ray.exceptions.RayError as error:
                if self.members is members:
                    self.failure = error
                    self._end()
                return

    def _first(self, working: list[Any], error: BaseException) -> BaseException:
        """What went wrong in the member that failed, if one did; else the error of this process."""
        if is_out_of_memory(error):
            return error
        ray.wait(working, num_returns=len(working), timeout=GRACE)
        failures = [self.failure] if self.failure else []
        for member in ray.wait(working, num_returns=len(working), timeout=0)[0]:
            try:
                ray.get(member)
            except ray.exceptions.RayError as failed:
                failures.append(failed)
        told = [failed.cause for failed in failures if isinstance(failed, ray.exceptions.RayTaskError)]
        wrong = [cause for cause in told if not is_of_company(cause)]
        short = [cause for cause in wrong if is_out_of_memory(cause)]
        if wrong:
            return (short or wrong)[0]
        if failures or is_of_company(error):
            return TeamBroken(f"a process of the run died: {failures[0] if failures else error}")
        return error

    def _part(self) -> None:
        """Leave the process group and end the members; the next run gathers anew."""
        self._end()
        self.members = []
        if distributed.is_initialized():
            distributed.destroy_process_group()

    def _end(self) -> None:
        for member in self.members:
            ray.kill(member)


def is_of_company(error: BaseException) -> bool:
    """Whether an error says no more than that another process cannot be reached."""
    said = ("gloo", "NCCL", "Connection closed", "Connection reset", "Connection refused", "Broken pipe")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)


def _begin(action: Callable[[], None]) -> Future[None]:
    """Do something in a thread that nobody need wait for."""
    future: Future[None] = Future()

    def act() -> None:
        try:
            action()
            future.set_result(None)
        except BaseException as error:  # noqa: BLE001 - told to whoever asks
            future.set_exception(error)

    threading.Thread(target=act, daemon=True).start()
    return future


def _all(own: Future[None], others: list[Any]) -> None:
    """Wait for this process and the other members; the first failure is raised, whoever still waits for that one."""
    while not own.done():
        ready, _ = ray.wait(others, num_returns=len(others), timeout=LOOK)
        ray.get(ready)
        if len(ready) == len(others):
            wait([own], timeout=LOOK)
    own.result()
    ray.get(others)


def _store(host: str, size: int) -> tuple[Store, int]:
    """Where the processes meet, heard on one address alone."""
    listening = socket.create_server((host, 0))
    port = listening.getsockname()[1]
    fd = listening.detach()
    return TCPStore(host, port, size, is_master=True, wait_for_workers=False, master_listen_fd=fd), port


class _Member:
    """A process of a team beside the first."""

    def join(self, host: str, port: int, rank: int, size: int) -> None:
        """Become a rank of the process group."""
        _join(TCPStore(host, port, size, is_master=False), rank, size)

    def train(self, job: Job | PackJob) -> None:
        """Do this process's part."""
        if isinstance(job, Job):
            job.train(silent, None)
            return
        count = len(job.orders)
        for _, ended in job.train([silent] * count, [Nobody()] * count):
            if not isinstance(ended, Outcome | Diverged | UserError):  # which all processes come to
                raise ended


def _join(store: Store, rank: int, size: int) -> None:
    on_gpu = torch.cuda.is_available()
    told = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in told.items()})  # for Accelerate; Ray shows each its own GPU
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # silences a warning; threads are set per run
    if interface := _interface(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)  # a host's own name may lead to its loopback
    distributed.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=size, timeout=LONG)


def _interface(address: str) -> str | None:
    """The network interface that has this address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()))[20:24]
            except OSError:  # has no address
                continue
            if socket.inet_ntoa(found) == address:
                return name
    return None
