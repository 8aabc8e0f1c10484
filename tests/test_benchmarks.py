"""The benchmark scripts run, on sizes of a second; what they measure is asserted nowhere."""

import json

import pytest
import torch

from benchmarks import step
from scaling.ops.selective_scan import selective_scan_ref


def test_step_times_all_rivals_and_writes_them(tmp_path, capsys):
    threads = torch.get_num_threads()
    small = ["--rounds", "1", "--batch", "2", "--width", "16", "--depth", "1", "--context", "4", "--threads", "1"]
    step.main([*small, "--json", str(tmp_path / "out.json")])
    torch.set_num_threads(threads)
    told = json.loads((tmp_path / "out.json").read_text())
    assert [set(seconds) for seconds in told.values()] == [{step.OURS, step.REFERENCE, step.LOOP}] * 2
    assert "| reference formulation |" in capsys.readouterr().out


def test_rivals_compute_the_same():
    inputs = step.scan_forward(2, 5, 6, 4)
    expected = inputs[step.OURS]()
    for call in inputs.values():
        torch.testing.assert_close(call(), expected, rtol=1e-4, atol=1e-5)


def test_the_loop_has_the_gradients_of_the_reference():
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 5, 3), (2, 5, 3), (3, 4), (2, 5, 4), (2, 5, 4), (3,), (2, 5, 3), (3,)]
    inputs = [torch.randn(*s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    found = [torch.autograd.grad(f(*inputs).sum(), inputs) for f in (step.running_state_scan, selective_scan_ref)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("rounds", [1, 3])
def test_turns_alternate_and_the_first_does_not_count(rounds):
    from benchmarks.timing import in_turns

    order: list[str] = []
    seconds = in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds)
    assert "".join(order) == "ab" * (rounds + 1)
    assert set(seconds) == {"a", "b"}
