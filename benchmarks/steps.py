"""Training steps of a size: forward, loss, backward, clipping, AdamW."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.formulations import Inner
from scaling import plug
from scaling.batches import HostBatches, Tensors
from scaling.flat import Flat, clip
from scaling.layers import mamba
from scaling.optimisation import optimiser_of
from scaling.spec import ModelSpec, RunSpec, Space
from scaling.store import open_store
from scaling.windows import Windows

HOPPER = Space(state=11, action=3)

Batches = Callable[[], tuple[Tensors, Tensor]]
"""The next inputs of a network, and where they are not padding."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """The size of a step."""

    width: int = 128
    depth: int = 3
    context: int = 20
    batch: int = 64
    store: str | None = None
    """Folder of the store from which windows are gathered at each step; without one, a single batch is made."""

    def spec(self, kind: str = "mambadm") -> ModelSpec:
        """The network."""
        return ModelSpec(kind=kind, width=self.width, depth=self.depth, context=self.context)


def network(spec: ModelSpec) -> nn.Module:
    """A network for Hopper, always the same one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built: nn.Module = plug.load("models", spec.kind).Model(spec, HOPPER)
    return built


def inputs(point: Point) -> Batches:
    """Windows of the store, other ones each time, or the one batch of random numbers."""
    return _made(point) if point.store is None else _gathered(point, Path(point.store))


def _made(point: Point) -> Batches:
    generator = torch.Generator().manual_seed(0)
    shape = (point.batch, point.context)
    rtg, state = torch.randn(shape, generator=generator), torch.randn(*shape, 11, generator=generator)
    action = 2 * torch.rand(*shape, 3, generator=generator) - 1
    batch = (rtg, state, action, torch.arange(point.context).expand(shape)), torch.ones(shape, dtype=torch.bool)
    return lambda: batch


def _gathered(point: Point, folder: Path) -> Batches:
    store, generator = open_store(folder), np.random.default_rng(0)
    windows = Windows(store, np.arange(len(store.lengths)), RunSpec(model=point.spec()))
    batches = HostBatches(windows, windows.normaliser(), torch.device("cpu"))
    return lambda: batches(windows.draw(point.batch, generator))


@contextmanager
def blocks_with(inner: Inner) -> Iterator[None]:
    """Mamba blocks with something else between their projections, which are PyTorch's then."""
    with mock.patch.multiple(mamba, in_one_kernel=lambda u: False, mamba_inner=inner):
        yield


def step(model: nn.Module, batches: Batches, inner: Inner | None = None) -> Callable[[], None]:
    """One training step, its parameters in a row as in a run.

    Args:
        model: what is trained.
        batches: gives the inputs.
        inner: what its Mamba blocks compute with instead of our kernels.

    """
    flat = Flat(model, weight_decay=0.1)
    optimiser = optimiser_of([{**group, "lr": 1e-4} for group in flat.groups], torch.device("cpu"))

    def run() -> None:
        (rtg, state, action, timestep), mask = batches()
        with nullcontext() if inner is None else blocks_with(inner):
            error = (model(rtg, state, action, timestep) - action).square() * mask[..., None]
            (error.sum() / mask.sum()).backward()
        flat.gather()
        clip(flat.slopes, 0.25)
        optimiser.step()

    return run
