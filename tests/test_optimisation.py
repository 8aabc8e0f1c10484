"""Learning rates along training and across widths."""

import dataclasses
import subprocess
import sys

import pytest
import torch

from scaling.optimisation import AdamW, learning_rate, peak_rate
from scaling.spec import TrainSpec


def test_learning_rate_rises_and_then_stays():
    spec = TrainSpec(learning_rate=1.0, warmup=0.5)
    rates = [learning_rate(spec, 64, update, 8) for update in range(8)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert learning_rate(dataclasses.replace(spec, warmup=0.0), 64, 0, 8) == 1.0


def test_a_cosine_falls_to_a_tenth_and_not_below():
    spec = TrainSpec(learning_rate=1.0, warmup=0.2, schedule="cosine")
    rates = [learning_rate(spec, 64, update, 10) for update in range(10)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[5] == pytest.approx(0.5)  # half of the way from the end of the rise to the last update
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] == 0.1


def test_a_base_width_makes_wider_networks_slower_in_proportion():
    spec = TrainSpec(learning_rate=1e-3, base_width=64, warmup=0.0)
    assert [peak_rate(spec, width) for width in (32, 64, 256)] == [2e-3, 1e-3, 2.5e-4]
    assert learning_rate(spec, 256, 5, 10) == 2.5e-4
    assert peak_rate(dataclasses.replace(spec, base_width=None), 256) == 1e-3


def test_adamw_steps_as_pytorchs_own_does():
    found = []
    for kind in (torch.optim.AdamW, AdamW):
        x = torch.nn.Parameter(torch.linspace(-1, 1, 5))
        optimiser = kind([{"params": [x], "weight_decay": 0.1}], lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            (x**4).sum().backward()
            optimiser.step()
        optimiser.load_state_dict(optimiser.state_dict())
        found.append((x.detach(), optimiser.state[x]["exp_avg_sq"], float(optimiser.state[x]["step"])))
    (x, moment, steps), (own, own_moment, own_steps) = found
    assert torch.equal(own, x)
    assert torch.equal(own_moment, moment)
    assert own_steps == steps == 3


WORK = """
import sys
from pathlib import Path
from scaling import runs, train
from scaling.spec import DataSpec, ModelSpec, RunSpec
spec = RunSpec(model=ModelSpec(width=8, depth=1, context=2), data=DataSpec(kind="tmaze", horizon=4, episodes=8))
with train.rehearsal(spec, runs.open_store(spec, Path())) as training:
    training.update()
print({"torch._dynamo", "torch.distributed.tensor", "sympy"} & set(sys.modules))
"""


def test_training_does_without_the_imports_of_compilers():
    said = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True).stdout
    assert said == "set()\n"
