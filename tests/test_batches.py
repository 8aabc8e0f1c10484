"""Windows gathered on a device from a resident copy, against windows gathered by the host."""

import numpy as np
import pytest
import torch
from test_subsets import make

from scaling.batches import HostBatches, Resident, ResidentBatches, resident_on
from scaling.cost import subset_of
from scaling.datasets import d4rl
from scaling.spec import DataSpec, ModelSpec, RunSpec

from conftest import build

CPU = torch.device("cpu")


def same(spec: RunSpec, store) -> None:
    windows = subset_of(spec, store).training
    normalise = windows.normaliser()
    starts = np.arange(len(windows))
    expected, seen = HostBatches(windows, normalise, CPU)(starts)
    found, mask = ResidentBatches(windows, normalise, Resident(windows.store, CPU))(starts)
    assert torch.equal(mask, seen)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    assert windows.steps(starts) == int(mask.sum())


@pytest.mark.parametrize("context", [1, 4, 39])
@pytest.mark.parametrize("data", [{}, {"segment": 7, "fraction": 0.5}, {"action_noise": 0.1, "reward_noise": 1.0}])
def test_a_resident_dataset_gives_the_same_windows_as_the_host(tmp_path, context, data):
    model = ModelSpec(context=context, subsequence=1)
    same(RunSpec(model=model, data=DataSpec(rtg_scale=3.0, **data)), make(tmp_path))


def test_choices_stay_whole_numbers(tmp_path):
    same(RunSpec(model=ModelSpec(context=4)), make(tmp_path, discrete=True))


def test_pictures_come_stacked_on_the_device_too(pictures):
    same(RunSpec(model=ModelSpec(context=3, frames=4, encoder="conv")), pictures)


def test_only_a_gpu_keeps_a_copy(hdf5):
    assert resident_on(build(hdf5, d4rl.read), CPU) is None
