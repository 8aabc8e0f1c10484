"""Windows as tensors on a device: gathered by the host and moved, or from a copy of the dataset that stays there."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scaling.store import Store
from scaling.windows import Batch, Normaliser, Windows

Tensors = tuple[Tensor, Tensor, Tensor, Tensor]
"""A model's inputs: rtg, state, action, timestep."""

Arrived = tuple[Tensors, Bool[Tensor, "window time"]]
"""Windows on the device, and where they are not padding."""

HOST = torch.device("cpu")

SHARE = 0.4
"""Of a GPU's free memory that a dataset may take."""


def tensors(batch: Batch, device: torch.device) -> Tensors:
    """The model's inputs, moved."""
    arrays = (batch.rtg, batch.state, batch.action, batch.timestep)
    return tuple(torch.from_numpy(array).to(device, non_blocking=True) for array in arrays)  # type: ignore[return-value]


class Batches(ABC):
    """Windows of some episodes on a device."""

    windows: Windows
    device: torch.device

    @abstractmethod
    def crossing(self, starts: np.ndarray) -> tuple[Tensor, ...]:
        """What the host hands over for the windows that begin at these transitions."""

    @abstractmethod
    def arrived(self, *crossed: Tensor) -> Arrived:
        """The windows, from that once it is on the device; without waiting for the device."""

    def __call__(self, starts: np.ndarray) -> Arrived:
        """The windows that begin at these transitions."""
        return self.arrived(*(x.to(self.device, non_blocking=True) for x in self.crossing(starts)))


class HostBatches(Batches):
    """Gathered by NumPy."""

    def __init__(self, windows: Windows, normalise: Normaliser, device: torch.device) -> None:
        self.windows, self.normalise, self.device = windows, normalise, device

    def crossing(self, starts: np.ndarray) -> tuple[Tensor, ...]:
        """The windows themselves."""
        batch = self.windows.gather(starts, self.normalise)
        return (*tensors(batch, HOST), torch.from_numpy(batch.mask))

    def arrived(self, *crossed: Tensor) -> Arrived:
        """They are what crossed."""
        rtg, state, action, timestep, mask = crossed
        return (rtg, state, action, timestep), mask


class Resident:
    """A dataset's arrays on a device."""

    def __init__(self, store: Store, device: torch.device) -> None:
        self.states, self.actions, self.rtg = (
            torch.from_numpy(np.array(array)).to(device) for array in (store.states, store.actions, store.rtg)
        )


class ResidentBatches(Batches):
    """Gathered on the device; only the places of the windows cross over."""

    def __init__(self, windows: Windows, normalise: Normaliser, resident: Resident) -> None:
        self.windows, self.resident = windows, resident
        self.device = device = resident.rtg.device
        self.before, self.first, self.lengths, self.skipped = (
            torch.from_numpy(array).to(device)
            for array in (windows.before, windows.first, windows.lengths, windows.skipped)
        )
        self.mean = torch.from_numpy(normalise.mean).to(device)
        self.scale = torch.from_numpy(normalise.std + 1e-6).to(device)

    def crossing(self, starts: np.ndarray) -> tuple[Tensor, ...]:
        """The places of the windows."""
        return (torch.from_numpy(starts),)

    def arrived(self, *crossed: Tensor) -> Arrived:
        """The windows, gathered from the device's copy."""
        (start,) = crossed
        episode = torch.searchsorted(self.before, start, right=True) - 1
        begin = start - self.before[episode]
        step = begin[:, None] + torch.arange(self.windows.context, device=self.device)
        mask = step < self.lengths[episode][:, None]
        step = torch.where(mask, step, 0)
        row = self.first[episode][:, None] + step
        action = self.resident.actions[row]
        inputs = (
            self.resident.rtg[row] * mask / self.windows.rtg_scale,
            self._pictures(episode, begin) if self.windows.store.image else self._states(row, mask),
            action * (mask if action.ndim == 2 else mask[..., None]),
            torch.where(mask, self.skipped[episode][:, None] + step, 0),
        )
        return inputs, mask

    def _states(
        self, row: Int[Tensor, "window time"], mask: Bool[Tensor, "window time"]
    ) -> Float[Tensor, "window time state"]:
        return ((self.resident.states[row] - self.mean) / self.scale).float() * mask[..., None]

    def _pictures(self, episode: Int[Tensor, " window"], begin: Int[Tensor, " window"]) -> Tensor:
        step = begin[:, None] + torch.arange(1 - self.windows.frames, self.windows.context, device=self.device)
        there = (step >= -self.skipped[episode][:, None]) & (step < self.lengths[episode][:, None])
        row = self.first[episode][:, None] + torch.where(there, step, 0)
        return self.resident.states[row] * there[..., None, None]


def resident_on(store: Store, device: torch.device) -> Resident | None:
    """The dataset on a GPU that has room for it; nothing elsewhere."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    size = store.states.nbytes + store.actions.nbytes + store.rtg.nbytes
    return Resident(store, device) if size < SHARE * free else None


def batches(windows: Windows, normalise: Normaliser, device: torch.device, resident: Resident | None) -> Batches:
    """Windows of some episodes, from the device's copy of their dataset if there is one."""
    if resident is None:
        return HostBatches(windows, normalise, device)
    return ResidentBatches(windows, normalise, resident)
