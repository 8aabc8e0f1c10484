"""Runs whose networks have one shape, trained as one program; each has its own data, seed, rates, curve and row.

Several processes may share the batches of all; each then adds up all gradients with the others once an update.

A run comes out as it would alone, but for rounding: its draws depend on its own seed, and its dropout on a generator
that stands where that of a run alone would. One that ends, diverges or is told to stop leaves, and the others go on.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from scaling import provenance
from scaling.batches import Tensors
from scaling.checkpoint import Keeper, State
from scaling.cost import Cost, Subset, cost_of, subset_of
from scaling.course import Course
from scaling.errors import Diverged, Interrupted, Parted, UserError
from scaling.evaluate import summed_loss
from scaling.identity import canonical, check_model
from scaling.layers.dropout import take_share
from scaling.ops.selective_scan import kernel_name
from scaling.optimisation import load_state
from scaling.replay import Numbers, Update, scalars
from scaling.rollouts import Performer, check_env, episode_rows, play, play_together
from scaling.spec import EvaluateSpec, ModelSpec, RunSpec, Space
from scaling.stack import Network, Stack, network_of
from scaling.stopwatch import settle
from scaling.store import Store
from scaling.train import Outcome, accelerator_for, check_processes, forget_company, row_of, seeded
from scaling.training import Places, Report, build, flattened, residents, shares_of

EPISODES = 256
"""Most episodes that are played side by side: windows of one forward pass."""

Ended = Outcome | Exception
"""How a run left its population."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run that is to be trained with others."""

    spec: RunSpec
    store: Store
    report: Report
    keeper: Keeper
    state: State | None
    """To go on from."""


def shape_of(spec: RunSpec, space: Space) -> tuple[ModelSpec, int, str, Space]:
    """What runs must have in common to be trained together."""
    spec = canonical(spec)
    return spec.model, spec.train.batch, spec.train.precision, space


def train_together(entries: Sequence[Entry]) -> Iterator[tuple[int, Ended]]:
    """Train all; each entry's number and how it ended, as soon as it has.

    Every process of a group calls this. The first has keepers, reports and rows; the others' outcomes are empty.

    Raises:
        ValueError: the runs differ in shape.
        Parted: of runs that several processes share, one was interrupted; the states of all were saved.

    """
    if len({shape_of(entry.spec, entry.store.space) for entry in entries}) > 1:
        raise ValueError("runs of different shapes cannot be trained together")
    provenance.reset_peak_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with accelerator_for(entries[0].spec) as accelerator:
        members: list[_Member] = []
        known: Places = {}
        for number, entry in enumerate(entries):
            try:
                members.append(_Member(number, entry, accelerator, len(entries), known))
            except UserError as error:
                yield number, error
        if members:
            yield from Population(members, accelerator).course()


class _Member:
    """One run of a population."""

    def __init__(self, number: int, entry: Entry, accelerator: Accelerator, packed: int, known: Places) -> None:
        self.number, self.entry, self.accelerator, self.packed = number, entry, accelerator, packed
        self.spec = spec = canonical(entry.spec)
        self.space: Space = entry.store.space
        self.subset: Subset = subset_of(spec, entry.store)
        check_model(spec, self.space)
        check_env(spec, self.space)
        check_processes(spec, accelerator.num_processes)
        self.cost: Cost = cost_of(spec, entry.store, self.subset)
        places = residents(self.subset, accelerator, known)
        self.course = Course(spec, self.space, self.subset, self.cost.updates, accelerator.device, *places)
        with seeded(spec.seed):
            self.model = build(spec, self.space).to(accelerator.device)
            _, optimiser = flattened(spec, self.model)
            generators = {"cpu": torch.get_rng_state()}
            if accelerator.device.type == "cuda":
                generators["cuda"] = torch.cuda.get_rng_state(accelerator.device)
        self.total = 0.0
        """Training losses between the last point of the curve and the start of this program."""
        if entry.state is not None:
            self.course.restore(entry.state)
            self.model.load_state_dict(entry.state["model"])
            load_state(optimiser, entry.state["optimiser"], accelerator.device)
            generators, self.total = {**generators, **entry.state["generators"]}, float(entry.state["total"])
        self.generators = generators
        generator = torch.Generator(accelerator.device)
        generator.set_state(generators[accelerator.device.type])
        self.network: Network = network_of(self.model, optimiser, generator, spec.train.clip)

    def outcome(self, played: list[dict[str, Any]]) -> Outcome:
        """The rows of a run whose curve is complete and whose episodes were played."""
        if not self.accelerator.is_main_process:
            return Outcome({}, [])
        kernel = kernel_name(self.accelerator.device.type, mapped=True)
        company = {"processes": self.accelerator.num_processes, "micro_batches": 1, "packed": self.packed}
        measured = {**self.course.measured(self.cost), **company, "kernel": kernel}
        return row_of(self.spec, self.entry.store, self.subset, self.cost, measured, played, self.accelerator)

    def save_last(self, stack: Stack, at: int) -> None:
        """The state after the last update, if it is wanted."""
        if self.entry.keeper.wants() or self.entry.keeper.keeps_last:
            self.entry.keeper.keep(self.state(stack, at))

    def pause(self, stack: Stack, at: int, before: Callable[[], None] = lambda: None) -> None:
        """Between two steps of the rollouts: save the state if that is wanted, and call something just before."""
        if self.entry.keeper.wants():
            before()
            self.entry.keeper.keep(self.state(stack, at))

    def state(self, stack: Stack, at: int) -> State:
        """What a run alone, too, could go on from."""
        kind = self.accelerator.device.type
        return {
            **self.course.state(),
            **stack.state(at),
            "generators": {**self.generators, kind: self.network.generator.get_state()},
            "total": torch.tensor(self.total, dtype=torch.float64),
        }


class _SharedClock:
    """Seconds of evaluation that several runs spend at once, in equal parts."""

    def __init__(self, courses: dict[int, Course]) -> None:
        self.courses, self.begin = courses, time.perf_counter()

    def tick(self) -> None:
        """Count what has passed."""
        now = time.perf_counter()
        for course in self.courses.values():
            course.spend("evaluate", (now - self.begin) / len(self.courses))
        self.begin = now


class Population:
    """The runs that are still under way."""

    def __init__(self, members: list[_Member], accelerator: Accelerator) -> None:
        self.members, self.accelerator = members, accelerator
        self.is_shared = accelerator.num_processes > 1
        """Whether other processes compute parts of the batches."""
        networks, reduce = [member.network for member in members], accelerator.reduce if self.is_shared else None
        self.stack = Stack(members[0].model, networks, accelerator.device, reduce)
        (self.share,) = shares_of(members[0].spec.train.batch, accelerator)
        if self.is_shared:
            take_share(self.stack.model, self.share)
        self.totals = torch.zeros(len(members), dtype=torch.float64, device=accelerator.device)
        self.step = self._recorder()
        self.ends: list[int] = []
        """Of the tensors that each member hands over for an update: some have their data on the device, some do not."""

    def course(self) -> Iterator[tuple[int, Ended]]:
        """Update all until all have ended."""
        while self.members:
            yield from self._drop(self._arrivals())
            if self.members:
                self.update()
                yield from self._drop(self._interruptions())

    def update(self) -> None:
        """One step of each member on its own windows."""
        begin = time.perf_counter()
        drawn = [member.course.draw() for member in self.members]
        places = zip(self.members, drawn, strict=True)
        own = slice(self.share.begin, self.share.stop)
        crossing = [member.course.batches.crossing(starts[own]) for member, (starts, _) in places]
        self.ends = np.cumsum([len(tensors) for tensors in crossing]).tolist()
        factors = [1.0 / steps for _, steps in drawn]
        rates = [member.course.rate for member in self.members]
        self.totals += self.step([x for tensors in crossing for x in tensors], [*factors, *rates])
        share = (time.perf_counter() - begin) / len(self.members)
        for member, (_, steps) in zip(self.members, drawn, strict=True):
            member.course.updated(steps)
            member.course.spend("train", share)

    def _step(self, crossed: Sequence[Tensor], numbers: Numbers) -> Tensor:
        """The losses of an update of all; nothing in it waits for the device."""
        count = len(self.members)
        places = zip(self.members, [0, *self.ends], self.ends, strict=False)
        given = [member.course.batches.arrived(*crossed[begin:end]) for member, begin, end in places]
        inputs = [torch.stack(kind) for kind in zip(*((*inputs, mask) for inputs, mask in given), strict=True)]
        with self.accelerator.autocast():
            losses = self.stack.losses(_loss, *inputs, scalars(numbers[:count], self.stack.device))
        self.stack.step(losses, numbers[count:])
        return losses.detach()

    def _recorder(self) -> Update:
        """Updates of the members there are."""
        generators = [member.network.generator for member in self.members]
        return Update(self._step, self.stack.device, generators, alone=not self.is_shared)

    def _settle(self) -> None:
        """Wait for the device, so that the clocks are right."""
        begin = time.perf_counter()
        settle(self.stack.device)
        share = (time.perf_counter() - begin) / len(self.members)
        for member in self.members:
            member.course.spend("train", share)

    def _arrivals(self) -> Iterator[tuple[int, Ended]]:
        """Measure the members that are at a point of their curves; those that ended there."""
        if any(member.course.mark == member.course.done for member in self.members):
            self._settle()
        finished = []
        for at, member in enumerate(self.members):
            try:
                if member.course.mark == member.course.done:
                    self._measure(at, member)
                if member.course.mark is None:
                    member.save_last(self.stack, at)
                    finished.append(at)
            except Exception as error:  # its own, which the others need not share
                # interrupted here is only who has ended everywhere; of all else other processes may know nothing
                if self.is_shared and not isinstance(error, Diverged | Interrupted):
                    raise
                yield at, error
        for at, played in self._played(finished):
            try:
                if isinstance(played, Exception):
                    raise played
                yield at, self.members[at].outcome(played)
            except Exception as error:  # noqa: BLE001 - as above
                yield at, error

    def _played(self, finished: list[int]) -> Iterator[tuple[int, list[dict[str, Any]] | Exception]]:
        """The episodes of these members, or how that failed; those that see windows are played side by side."""
        asked = {at: self.members[at].spec.evaluate for at in finished}
        plays = self.accelerator.is_main_process
        beside = [at for at in finished if plays and asked[at].env is not None and asked[at].rollout == "window"]
        companies = [company for company in _companies(beside, asked) if len(company) > 1]
        beside = [at for company in companies for at in company]
        for at in finished:
            if at not in beside:
                try:
                    yield at, self._played_alone(at)
                except Exception as error:  # noqa: BLE001 - as above
                    yield at, error
        for company in companies:
            yield from self._played_beside(company)

    def _played_alone(self, at: int) -> list[dict[str, Any]]:
        member, device = self.members[at], self.stack.device
        if member.spec.evaluate.env is None or not self.accelerator.is_main_process:
            return []
        with member.course.clock("evaluate"), self.accelerator.autocast():
            model, pause = self.stack.alone(at), partial(member.pause, self.stack, at)
            return episode_rows(
                member.spec, play(model, member.spec, member.space, member.course.normalise, device, pause)
            )

    def _played_beside(self, members: list[int]) -> Iterator[tuple[int, list[dict[str, Any]] | Exception]]:
        """Those of members that see windows, one forward pass a step for all."""
        clock = _SharedClock({at: self.members[at].course for at in members})
        performers = [
            Performer(one.spec, one.space, one.course.normalise, partial(one.pause, self.stack, at, clock.tick))
            for at, one in ((at, self.members[at]) for at in members)
        ]
        chosen: dict[tuple[int, ...], dict[str, Tensor]] = {}

        def predict(numbers: list[int], inputs: Tensors) -> Tensor:
            key = tuple(members[number] for number in numbers)
            if key not in chosen:  # gathered anew only when one has ended
                chosen.clear()
                chosen[key] = self.stack.parameters_of(key)
            with self.accelerator.autocast():
                return self.stack.predicted(chosen[key], inputs)

        for number, played in play_together(performers, predict, self.stack.device):
            at = members[number]
            clock.tick()
            del clock.courses[at]
            yield at, played if isinstance(played, Exception) else episode_rows(self.members[at].spec, played)
            clock.begin = time.perf_counter()

    def _measure(self, at: int, member: _Member) -> None:
        index, processes = self.accelerator.process_index, self.accelerator.num_processes
        with member.course.clock("evaluate"), self.accelerator.autocast():
            summed = member.course.held_out.summed(self.stack.alone(at), index, processes)
            both = torch.stack([self.totals[at] + member.total, summed])
            trained, unseen = self.accelerator.reduce(both).tolist()
        mark, loss = member.course.done, member.course.measure(trained, unseen)
        member.total, self.totals[at] = 0.0, 0.0
        member.entry.report(mark, loss)

    def _interruptions(self) -> Iterator[tuple[int, Ended]]:
        """Save the states that are to be saved; the members that ended by that."""
        wanting = [at for at, member in enumerate(self.members) if member.entry.keeper.wants()]
        ended = list(self._kept(wanting))
        yield from ended
        if ended and self.is_shared:  # the other processes know nothing of it
            yield from self._kept([at for at in range(len(self.members)) if at not in wanting])
            raise Parted

    def _kept(self, members: list[int]) -> Iterator[tuple[int, Ended]]:
        """Save the states of some members; those that it ended."""
        for at in members:
            member = self.members[at]
            member.total, self.totals[at] = member.total + float(self.totals[at]), 0.0
            try:
                member.entry.keeper.keep(member.state(self.stack, at))
            except Interrupted as error:
                yield at, error

    def _drop(self, ended: Iterator[tuple[int, Ended]]) -> Iterator[tuple[int, Ended]]:
        """Go on without those that ended."""
        gone = set()
        for at, how in ended:
            gone.add(at)
            yield self.members[at].number, how
        if gone:
            left = [at for at in range(len(self.members)) if at not in gone]
            self.stack.keep(left)
            self.members, self.totals = [self.members[at] for at in left], self.totals[left]
            self.step = self._recorder()


def _companies(members: list[int], asked: Mapping[int, EvaluateSpec]) -> list[list[int]]:
    """The members in groups that have no more than ``EPISODES`` together, or are of one."""
    companies: list[list[int]] = []
    count = EPISODES
    for at in members:
        own = asked[at].episodes * len(asked[at].targets)
        if count + own > EPISODES:
            companies.append([])
            count = 0
        companies[-1].append(at)
        count += own
    return companies


def _loss(
    predicted: Tensor, rtg: Tensor, state: Tensor, action: Tensor, timestep: Tensor, mask: Tensor, factor: Tensor
) -> Tensor:
    return summed_loss(predicted, action, mask) * factor


@contextmanager
def rehearsal(entries: Sequence[Entry]) -> Iterator[Population]:
    """Runs before their first update, in this process alone, to be tried and timed; nothing of it is kept."""
    forget_company()
    with accelerator_for(entries[0].spec) as accelerator:
        known: Places = {}
        members = [_Member(0, entry, accelerator, len(entries), known) for entry in entries]
        yield Population(members, accelerator)
