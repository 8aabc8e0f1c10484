"""The benchmark of speed runs, on sizes of a second; what it times is asserted nowhere, what it compares is."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from benchmarks import device, formulations, growth, memory, mixers, populations, rivals, speed, steps, timing
from benchmarks.document import Settings
from benchmarks.formulations import Missing
from benchmarks.steps import HOPPER, Point
from benchmarks.timing import in_turns
from scaling.layers import mamba, sequence
from scaling.layers.mamba import Mamba, MambaShape
from scaling.ops.layers import layers
from scaling.ops.mamba_inner import mamba_inner_ref
from scaling.spec import ModelSpec

TINY = Point(width=16, depth=2, context=6, batch=3)
INTERFACE = """
import selective_scan_cuda
from mamba_ssm.ops.triton.layer_norm import _layer_norm_fwd
from scaling.ops.selective_scan import selective_scan_ref as ours

def selective_scan_ref(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    assert delta_softplus
    u, delta, B, C, z = (x.transpose(1, 2) for x in (u, delta, B, C, z))
    return ours(u, delta, A, B, C, D, z, delta_bias).transpose(1, 2)
"""


def inner_inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    batch, time, channels, taps, rank, states = 2, 7, 6, 4, 3, 5
    shapes = [(batch, time, 2 * channels), (channels, taps), (channels,), (rank + 2 * states, channels)]
    shapes += [(channels, rank), (channels, states), (channels,), (channels,)]
    return [torch.randn(*s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def unpacked(folder: Path, text: str = INTERFACE) -> Path:
    for part in ("mamba_ssm", "mamba_ssm/ops"):
        (folder / part).mkdir()
        (folder / part / "__init__.py").write_text("import what_only_cuda_has" if part == "mamba_ssm" else "")
    (folder / "mamba_ssm/ops/selective_scan_interface.py").write_text(text)
    return folder


def quiet(point: Point) -> ModelSpec:
    return dataclasses.replace(point.spec(), dropout=0.0)


def test_speed_prints_and_writes_one_document(tmp_path, capsys):
    threads = torch.get_num_threads()
    speed.main(["--quick", "--rounds", "1", "--threads", "1", "--out", str(tmp_path)])
    torch.set_num_threads(threads)
    assert (tmp_path / "speed.md").read_text() in capsys.readouterr().out
    tables = json.loads((tmp_path / "speed.json").read_text())["tables"]
    usual_alone, small_alone, usual, small, *grown, together, whole = tables
    assert [row["what"].split(":")[0] for row in usual["rows"]] == [*rivals.RIVALS, rivals.FLOOR.split(":")[0]]
    assert all(row["ms"] or "not installed" in row["what"] for row in usual["rows"])
    for table in (usual_alone, small_alone):
        assert [row["what"] for row in table["rows"]] == [rivals.OURS, rivals.FLOOR]
    assert [row["what"] for row in small["rows"]] == [rivals.OURS, rivals.REFERENCE, rivals.FLOOR]
    assert len(grown) == len(growth.QUICK_AXES) + 1
    assert all(row["ms"] > 0 and row["peak MiB"] > 0 for table in grown for row in table["rows"])
    assert [row["width"] for row in together["rows"]] == [width for width, _ in populations.QUICK_SIZES]
    assert [row["how"] for row in whole["rows"]] == list(populations.WAYS)
    assert whole["rows"][0]["packs"] == "1"


def test_what_a_gpu_gains_is_measured_on_whatever_device_there_is(capsys):
    device.main(["--quick", "--rounds", "1"])
    said = capsys.readouterr().out
    assert "| reference |" in said
    for precision in device.PRECISIONS:
        table = said.split(f"{precision}: populations")[1].splitlines()
        assert [line.split("|")[1].strip() for line in table[4:7]] == [device.CALLED, "1", "2"]


@pytest.mark.parametrize("source", ["loop", "mamba-ssm"])
def test_formulations_have_values_and_gradients_of_the_reference(source, tmp_path):
    scan = formulations.running_state_scan if source == "loop" else formulations.mamba_ssm_scan(unpacked(tmp_path))
    found = []
    for inner in (formulations.around(scan), mamba_inner_ref):
        inputs = inner_inputs()
        y = inner(*inputs)
        found.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_an_unpacked_source_of_mamba_ssm_leaves_no_trace(tmp_path):
    formulations.mamba_ssm_scan(unpacked(tmp_path))
    assert not {"selective_scan_cuda", "mamba_ssm", formulations.INTERFACE} & set(sys.modules)


@pytest.mark.parametrize(
    ("text", "said"),
    [("import only_cuda", "only_cuda"), ("import einops", "pip install einops"), ("raise ImportError('no')", "no")],
)
def test_an_unusable_source_of_mamba_ssm_is_missing_with_the_reason(text, said, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "einops", None)
    with pytest.raises(Missing, match=said):
        formulations.mamba_ssm_scan(unpacked(tmp_path, text))


def other_block(shape: MambaShape) -> nn.Module:
    torch.manual_seed(1)
    return Mamba(shape)


@pytest.mark.parametrize("make", [other_block, mixers.mambapy, mixers.hugging_face])
def test_blocks_of_other_packages_compute_what_ours_do(make: Callable[[MambaShape], nn.Module]):
    point, spec = TINY, quiet(TINY)
    (inputs, _), found = steps.inputs(point)(), []
    for replaced in (False, True):
        model = steps.network(spec)
        count = len(list(model.parameters()))
        if replaced:
            try:
                mixers.replace(model, make)
            except Missing as error:
                pytest.skip(str(error))
        assert len(list(model.parameters())) == count
        out = model(*inputs)
        found.append([out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [mixers.mambapy, mixers.hugging_face])
def test_blocks_of_other_packages_do_not_use_our_kernels(make: Callable[[MambaShape], nn.Module]):
    try:
        model = mixers.replace(steps.network(quiet(TINY)), make)
    except Missing as error:
        pytest.skip(str(error))
    ours = {name: mock.Mock(side_effect=AssertionError) for name in ("mamba_inner", "layers")}
    with mock.patch.multiple(mamba, **ours), mock.patch.object(sequence, "layers", wraps=layers) as used:
        assert model(*steps.inputs(TINY)()[0]).shape == (TINY.batch, TINY.context, HOPPER.action)
    assert all(not form.lengths for _, form, *_ in (call.args for call in used.call_args_list))


def test_the_slow_path_of_transformers_is_taken_where_kernels_for_cuda_are_installed(monkeypatch):
    pytest.importorskip("transformers", reason="not installed: pip install transformers")
    monkeypatch.delitem(sys.modules, "transformers.models.mamba.modeling_mamba", raising=False)
    for package in ("mamba_ssm", "causal_conv1d"):
        monkeypatch.setitem(sys.modules, package, mock.MagicMock())
    block = mixers.hugging_face(mamba.shape_of(TINY.spec()))
    assert block(torch.zeros(2, 5, TINY.width)).shape == (2, 5, TINY.width)


@pytest.mark.parametrize("package", ["mambapy", "transformers"])
def test_a_package_that_is_not_there_is_a_row_that_says_how_to_get_it(package, monkeypatch):
    rival = {"mambapy": rivals.MAMBAPY, "transformers": rivals.HUGGING_FACE}[package]
    settings = Settings(threads=1, rounds=1, quick=True)
    for name in (package, f"{package}.mamba"):
        monkeypatch.setitem(sys.modules, name, None)
    table = rivals.compared(TINY, settings, {name: rivals.RIVALS[name] for name in (rivals.OURS, rival)})
    _, absent, _ = table.rows
    assert absent["what"] == f"{rival}: not installed: `pip install {package}`"
    assert absent["ms"] is absent["times ours"] is None
    assert f"`pip install {package}` |  |  |  |" in table.markdown()


def test_the_rival_transformer_has_about_as_many_parameters():
    for width in (32, 128):
        spec = ModelSpec(width=width)
        other = rivals.equal_transformer(spec)
        assert abs(rivals.parameters(other) / rivals.parameters(spec) - 1) < 0.05
        assert steps.network(other)


def test_a_planted_exponent_is_found():
    rows = [{"width": x, "ms": 3.0 * x**1.5} for x in (32, 64, 128)]
    assert growth.slope(rows, "width", "ms") == pytest.approx(1.5)


def test_peak_memory_grows_with_what_is_kept_for_the_backward_pass():
    small, large = (memory.peak(Point(width=32, depth=2, batch=batch), 1) for batch in (32, 128))
    assert 2.5 * small < large < 5 * small


def test_steps_gather_other_windows_of_a_store_each_time(tmp_path):
    point = dataclasses.replace(TINY, store=growth.store(1_000, tmp_path))
    batches = steps.inputs(point)
    (first, mask), (second, _) = batches(), batches()
    assert mask.shape == first[0].shape == (point.batch, point.context)
    assert not torch.equal(first[1], second[1])


@pytest.mark.parametrize("rounds", [1, 3])
def test_turns_alternate_and_the_first_does_not_count(rounds, monkeypatch):
    monkeypatch.setattr(timing, "LEAST", 0.0)
    order: list[str] = []
    seconds = in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds)
    assert "".join(order) == "ab" * (rounds + 1)
    assert set(seconds) == {"a", "b"}


def test_what_is_short_is_called_several_times_a_turn(monkeypatch):
    moments = [0.0]

    def short() -> None:
        moments.append(moments[-1] + 0.02)

    monkeypatch.setattr(timing, "LEAST", 0.09)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: moments[-1]))
    assert in_turns({"short": short}, 2) == {"short": pytest.approx(0.02)}
    assert len(moments) - 1 == 1 + 2 * 5
