"""The state of one run while it lasts: network, optimiser, generators, curve; and what moves it on."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from scaling import plug
from scaling.batches import Resident, resident_on
from scaling.checkpoint import Keeper, Nobody, State
from scaling.cost import Cost, Subset
from scaling.course import Course
from scaling.evaluate import summed_loss
from scaling.flat import Flat, clip
from scaling.layers.dropout import Share, take_share
from scaling.optimisation import AdamW, load_state, optimiser_of, peak_rate, plain_state
from scaling.replay import Numbers, Update
from scaling.rollouts import episode_rows, play
from scaling.spec import RunSpec, Space

Report = Callable[[int, float], None]
"""Called with the number of updates done and the held-out loss, at every point of the curve."""


def silent(update: int, loss: float) -> None:
    """Report nothing."""


class Training:
    """One run in one process of its group."""

    def __init__(
        self,
        spec: RunSpec,
        space: Space,
        subset: Subset,
        updates: int,
        accelerator: Accelerator,
        micro_batches: int = 1,
        keeper: Keeper | None = None,
    ) -> None:
        """Build everything, before the first update.

        Args:
            spec: the run.
            space: of its dataset.
            subset: what it trains on and is measured on.
            updates: how many there will be, unless it converges before.
            accelerator: of this process.
            micro_batches: parts in which this process computes its share of a batch; changes memory, not
                what is computed.
            keeper: asked whether to save the state.

        """
        self.spec, self.space, self.accelerator = spec, space, accelerator
        self.keeper = keeper or Nobody()
        self.course = Course(spec, space, subset, updates, accelerator.device, *residents(subset, accelerator, {}))
        self.bare = build(spec, space)
        self.model = accelerator.prepare(self.bare, device_placement=[True])  # first, since it may move the parameters
        self.flat, optimiser = flattened(spec, self.bare)
        self.optimiser = accelerator.prepare(optimiser)
        self.shares = shares_of(spec.train.batch, accelerator, micro_batches)
        alone = accelerator.num_processes == 1 and len(self.shares) == 1
        self.step = Update(self._step, accelerator.device, alone=alone)
        self.total = torch.zeros((), device=accelerator.device, dtype=torch.float64)
        """Training losses since the last point of the curve, added up; finite only if each was."""

    def curve(self, report: Report = silent) -> list[dict[str, Any]]:
        """Held-out losses along the updates: all of them, or as many as it takes to converge.

        Raises:
            Diverged: a loss stopped being finite.

        """
        course = self.course
        while (mark := course.mark) is not None:
            with course.clock("train"):
                self._advance(mark)
            with course.clock("evaluate"):
                losses = self._losses()
            loss = course.measure(*losses)
            self.total.zero_()
            report(mark, loss)
        if self.keeper.keeps_last:
            self.keeper.keep(self.state())
        return course.points

    def _advance(self, mark: int) -> None:
        """All updates up to number ``mark``."""
        while self.course.done < mark:
            self.total += self.update()
            self._pause()
        self.total.cpu()  # waits for the device, so that the clock is right

    def _pause(self) -> None:
        """Between two updates: save the state if that is wanted."""
        if self.keeper.wants():
            self.keeper.keep(self.state())

    def update(self) -> Tensor:
        """One optimiser step on this process's share of the windows drawn for it; the share's part of the loss.

        Any number of processes sees the same windows. Their gradients are averaged, hence the factor: the sum over
        shares is divided by all timesteps.
        """
        starts, steps = self.course.draw()
        numbers = (self.accelerator.num_processes / steps, self.course.rate)
        if len(self.shares) == 1:
            loss = self.step(self._crossing(starts, self.shares[0]), numbers)
        else:
            loss = self._in_parts(starts, *numbers)
        self.course.updated(steps)
        return loss

    def _crossing(self, starts: np.ndarray, share: Share) -> tuple[Tensor, ...]:
        return self.course.batches.crossing(starts[share.begin : share.stop])

    def _step(self, crossed: Sequence[Tensor], numbers: Numbers) -> Tensor:
        """An update from one part; nothing in it waits for the device."""
        factor, rate = numbers
        loss = self._part(crossed, self.shares[0], factor)
        self._descend(rate)
        return loss

    def _in_parts(self, starts: np.ndarray, factor: float, rate: float) -> Tensor:
        """An update from several parts, each of which draws the masks of the whole batch."""
        generators, device = _generators(), self.accelerator.device
        total = torch.zeros((), device=device)
        for share in self.shares:
            _set_generators(generators)
            is_last = share is self.shares[-1]
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                total += self._part([x.to(device) for x in self._crossing(starts, share)], share, factor)
        self._descend(rate)
        return total

    def _part(self, crossed: Sequence[Tensor], share: Share, factor: float | Tensor) -> Tensor:
        """Gradients of some windows of the batch, added to those there are; their part of the loss."""
        (rtg, state, action, timestep), mask = self.course.batches.arrived(*crossed)
        split = share.stop - share.begin < share.total or self.accelerator.device.type == "cuda"
        take_share(self.bare, share if split else None)
        loss = summed_loss(self.model(rtg, state, action, timestep), action, mask) * factor
        self.accelerator.backward(loss)
        return loss.detach()

    def _descend(self, rate: float | Tensor) -> None:
        """Gather the gradients, clip them, and step."""
        self.flat.gather()
        clip(self.flat.slopes, self.spec.train.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()

    def _losses(self) -> tuple[float, float]:
        """Training loss since the last point and held-out loss, each summed; every process works out a part of both."""
        index, processes = self.accelerator.process_index, self.accelerator.num_processes
        summed = self.course.held_out.summed(self.bare, index, processes)
        trained, unseen = self.accelerator.reduce(torch.stack([self.total, summed])).tolist()
        return trained, unseen

    def rollouts(self) -> list[dict[str, Any]]:
        """A row per episode; for the process alone that writes the run's row."""
        if self.spec.evaluate.env is None:
            return []
        normalise, device = self.course.normalise, self.accelerator.device
        with self.course.clock("evaluate"), self.accelerator.autocast():
            played = play(self.bare, self.spec, self.space, normalise, device, self._pause)
        return episode_rows(self.spec, played)

    def measured(self, cost: Cost) -> dict[str, Any]:
        """The columns of the row that come out of training, once the curve is complete."""
        company = {"processes": self.accelerator.num_processes, "micro_batches": len(self.shares)}
        return {**self.course.measured(cost), **company}

    def state(self) -> State:
        """All that decides how the run goes on; any process may go on from that of the first."""
        return {
            **self.course.state(),
            "model": self.bare.state_dict(),
            "optimiser": plain_state(self.optimiser),
            "generators": _generators(),
            "total": self.total.cpu(),
        }

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self.course.restore(state)
        self.bare.load_state_dict(state["model"])
        load_state(self.optimiser, state["optimiser"], self.accelerator.device)
        _set_generators(state["generators"])
        self.total.copy_(state["total"])


def build(spec: RunSpec, space: Space) -> nn.Module:
    """The run's network, initialised from PyTorch's global generators."""
    model: nn.Module = plug.load("models", spec.model.kind).Model(spec.model, space)
    return model


def flattened(spec: RunSpec, model: nn.Module) -> tuple[Flat, AdamW]:
    """The parameters of the run's network, where they are to stay, as rows; and their optimiser."""
    flat = Flat(model, spec.train.weight_decay)
    settings = {"lr": peak_rate(spec.train, spec.model.width), "betas": (0.9, spec.train.beta2)}
    return flat, optimiser_of([{**group, **settings} for group in flat.groups], flat.values.device)


def shares_of(batch: int, accelerator: Accelerator, parts: int = 1) -> list[Share]:
    """The parts of each batch that are this process's to compute."""
    own = np.array_split(np.arange(batch), accelerator.num_processes)[accelerator.process_index]
    pieces = np.array_split(own, min(parts, len(own)))
    return [Share(int(piece[0]), int(piece[-1]) + 1, batch) for piece in pieces]


Places = dict[int, Resident | None]
"""Datasets that are on the device already, by the identity of their stores."""


def residents(subset: Subset, accelerator: Accelerator, known: Places) -> tuple[Resident | None, Resident | None]:
    """The dataset on the device, for training and for held-out episodes, as far as there is room for it."""
    for store in (subset.training.store, subset.held_out.store):
        if id(store) not in known:
            known[id(store)] = resident_on(store, accelerator.device)
    return known[id(subset.training.store)], known[id(subset.held_out.store)]


def _generators() -> dict[str, Tensor]:
    """States of PyTorch's global generators, from which dropout draws."""
    found = {"cpu": torch.get_rng_state()}
    return found | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _set_generators(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
