"""On a GPU: the kernels against the reference, and a whole run. Nothing here runs without one."""

import dataclasses
import importlib.util

import pytest
import torch

from scaling import plug, train
from scaling.checkpoint import Nobody
from scaling.datasets import tmaze
from scaling.errors import UserError
from scaling.ops.selective_scan import kernel_name, selective_scan, selective_scan_ref, selective_scan_triton
from scaling.population import Entry, train_together
from scaling.replay import Update
from scaling.spec import DataSpec, ModelSpec, RunSpec, Space, TrainSpec
from scaling.training import silent

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")


def scan_inputs(device: str, time: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(time)
    batch, channel, state = 3, 48, 16
    shapes = [(batch, time, channel)] * 2 + [(channel, state)] + [(batch, time, state)] * 2
    shapes += [(channel,), (batch, time, channel), (channel,)]
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    inputs[2] = -inputs[2].exp()
    return [x.to(device).requires_grad_() for x in inputs]


@pytest.mark.parametrize("scan", [selective_scan, pytest.param(selective_scan_triton, marks=needs_triton)])
@pytest.mark.parametrize("time", [1, 2, 16, 17, 59, 60, 200])
def test_the_scan_on_a_gpu_is_that_of_the_reference_in_value_and_gradient(time, scan):
    inputs, exact = scan_inputs("cuda", time), [x.double().detach().requires_grad_() for x in scan_inputs("cpu", time)]
    y, y_ref = scan(*inputs), selective_scan_ref(*exact)
    torch.testing.assert_close(y.cpu().double(), y_ref, rtol=1e-4, atol=1e-5)
    ours = torch.autograd.grad(y.square().sum(), inputs)
    theirs = torch.autograd.grad(y_ref.square().sum(), exact)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, rtol=1e-3, atol=1e-3)


@needs_triton
def test_members_of_a_population_on_a_gpu_are_computed_as_each_alone():
    stacked = [torch.stack([x.detach() / 2, x.detach()]).requires_grad_() for x in scan_inputs("cuda", 40)]
    y = torch.vmap(selective_scan)(*stacked)
    found = torch.autograd.grad(y.square().sum(), stacked)
    for member in range(2):
        alone = [x[member].detach().requires_grad_() for x in stacked]
        y_alone = selective_scan_triton(*alone)
        torch.testing.assert_close(y[member], y_alone, rtol=1e-6, atol=1e-6)
        expected = torch.autograd.grad(y_alone.square().sum(), alone)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one[member], other, rtol=1e-5, atol=1e-5)


@needs_triton
def test_the_scan_can_be_captured_in_a_graph():
    inputs = scan_inputs("cuda", 40)

    def step() -> list[torch.Tensor]:
        y = selective_scan_triton(*inputs)
        return [y, *torch.autograd.grad(y.square().sum(), inputs)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        inputs[0].mul_(2)
    graph.replay()
    for one, other in zip(captured, step(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", plug.names("models"))
def test_a_network_on_a_gpu_gives_what_it_gives_on_a_cpu(kind):
    space, spec = Space(state=5, action=3), ModelSpec(kind=kind, width=32, depth=2, context=7, dropout=0.0)
    torch.manual_seed(0)
    model = plug.load("models", kind).Model(spec, space).eval()
    inputs = [torch.randn(2, 7), torch.randn(2, 7, 5), torch.rand(2, 7, 3), torch.arange(7).expand(2, 7)]
    there = model(*inputs)
    here = model.cuda()(*(x.cuda() for x in inputs)).cpu()
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_on_a_gpu_learns_and_says_which_kernel_it_used(precision, tmp_path):
    spec = RunSpec(
        model=ModelSpec(width=32, depth=1, context=5, dropout=0.0),
        data=DataSpec(kind="tmaze", horizon=5, episodes=200, starts="episode", rtg_scale=1.0),
        train=TrainSpec(amount=200.0, batch=32, learning_rate=5e-3, evaluations=4, precision=precision),
    )
    row = train.train(spec, tmaze.open(spec.data, tmp_path)).row
    assert row["loss"] < row["loss_constant"]
    assert row["kernel"] == kernel_name("cuda")
    assert row["peak_memory"] > 0
    again = train.train(dataclasses.replace(spec, seed=1), tmaze.open(spec.data, tmp_path)).row
    assert again["loss"] != row["loss"]


@pytest.mark.parametrize("count", [1, 3])
def test_updates_played_from_a_graph_are_updates_that_are_called(count, tmp_path, monkeypatch):
    specs = [
        RunSpec(
            model=ModelSpec(width=32, depth=1, context=5, dropout=0.1),
            data=DataSpec(kind="tmaze", horizon=5, episodes=200, starts="episode", rtg_scale=1.0),
            train=TrainSpec(amount=20.0, batch=32, learning_rate=1e-3 * (1 + seed), evaluations=2, warmup=0.5),
            seed=seed,
        )
        for seed in range(count)
    ]
    store = tmaze.open(specs[0].data, tmp_path)

    def losses() -> list[float]:
        if count == 1:
            return [train.train(specs[0], store).row["loss"]]
        entries = [Entry(spec=spec, store=store, report=silent, keeper=Nobody(), state=None) for spec in specs]
        return [outcome.row["loss"] for _, outcome in sorted(train_together(entries))]

    played = losses()
    monkeypatch.setenv("SCALING_CUDA_GRAPHS", "0")
    assert losses() == pytest.approx(played, rel=1e-4)


def test_what_waits_for_the_gpu_cannot_be_recorded_and_the_error_says_how_to_go_without():
    update = Update(lambda given, numbers: given[0] * given[0].sum().item(), torch.device("cuda"))
    for _ in range(3):
        update([torch.ones(2)], [])
    with pytest.raises(UserError, match=r"cannot be recorded as a CUDA graph: .*SCALING_CUDA_GRAPHS=0"):
        update([torch.ones(2)], [])
