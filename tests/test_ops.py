"""The fast kernels against their references: values, gradients, odd sizes, threads, NaN."""

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numba import njit
from torch import Tensor
from torch.nn import functional

from scaling.ops import _vectors, selective_scan
from scaling.ops.causal_conv import causal_conv
from scaling.ops.dropout import Draw, seed_from
from scaling.ops.feed_forward import ACTIVATIONS, feed_forward, feed_forward_ref
from scaling.ops.mamba_inner import mamba_inner, mamba_inner_ref, mamba_inners, mamba_inners_ref
from scaling.ops.selective_scan import kernel_name, selective_scan_ref


def normal_of(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def scan_inputs(batch: int, time: int, channels: int, states: int) -> list[Tensor]:
    normal = normal_of(time)
    u, z, delta = (normal(batch, time, channels) for _ in range(3))
    B, C = normal(batch, time, states), normal(batch, time, states)
    A = -torch.exp(normal(channels, states))
    return [u, delta - 1.0, A, B, C, normal(channels), z, normal(channels)]


def block_inputs(batch: int, time: int, channels: int, states: int, taps: int = 4, rank: int = 3) -> list[Tensor]:
    normal = normal_of(time)
    xz, x_weight = normal(batch, time, 2 * channels), normal(rank + 2 * states, channels) / channels**0.5
    small, dt_weight, A_log = normal(channels, taps) / 2, normal(channels, rank) / rank**0.5, normal(channels, states)
    return [xz, small, normal(channels), x_weight, dt_weight, A_log, normal(channels), normal(channels) - 1.0]


def gradients(function, inputs: list[Tensor], upstream: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = function(*inputs)
    return y, torch.autograd.grad((y * upstream.to(y.dtype)).sum(), inputs)


def assert_close_to_double(fast, slow, inputs: list[Tensor], upstream: Tensor) -> None:
    y_ref, g_ref = gradients(slow, inputs, upstream)
    y, g = gradients(fast, [x.float() for x in inputs], upstream)
    assert (y - y_ref).abs().max() <= 1e-5 * y_ref.abs().max().clamp(min=1)
    for one, other in zip(g, g_ref, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


@pytest.mark.parametrize("time", [1, 2, 3, 59, 64, 65, 200])
@pytest.mark.parametrize(("batch", "channels", "states"), [(1, 5, 3), (3, 70, 16), (34, 64, 16)])
def test_block_agrees_with_double_reference_in_value_and_gradient(time, batch, channels, states):
    inputs = block_inputs(batch, time, channels, states)
    upstream = torch.randn(batch, time, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert_close_to_double(mamba_inner, mamba_inner_ref, inputs, upstream)


@pytest.mark.parametrize("time", [1, 2, 3, 4, 61])
@pytest.mark.parametrize(("taps", "rank"), [(1, 1), (4, 9), (7, 4)])
def test_block_of_any_taps_and_rank_agrees_with_double_reference(time, taps, rank):
    upstream = normal_of(1)(3, time, 8)
    assert_close_to_double(mamba_inner, mamba_inner_ref, block_inputs(3, time, 8, 2, taps, rank), upstream)


def beside(function, lengths: tuple[int, int]):
    return lambda xz, *parameters: function(xz, lengths, (parameters[:7], parameters[7:]))


def pair_inputs(batch: int, time: int, channels: tuple[int, int]) -> list[Tensor]:
    one, other = (
        block_inputs(batch, time, count, states, rank=states) for count, states in zip(channels, (3, 5), strict=True)
    )
    return [torch.cat([one[0], 0.5 * other[0]], dim=-1), *one[1:], *other[1:]]


@pytest.mark.parametrize(
    ("time", "lengths"), [(12, (12, 3)), (12, (4, 12)), (12, (1, 6)), (9, (9, 3)), (140, (140, 70)), (130, (65, 13))]
)
@pytest.mark.parametrize(("batch", "channels"), [(20, (32, 16)), (3, (32, 16)), (9, (5, 70))])
def test_blocks_side_by_side_agree_with_double_reference(time, lengths, batch, channels):
    fast, slow = (beside(function, lengths) for function in (mamba_inners, mamba_inners_ref))
    upstream = normal_of(1)(batch, time, sum(channels))
    assert_close_to_double(fast, slow, pair_inputs(batch, time, channels), upstream)


def test_a_nan_stays_in_its_piece():
    xz, *parameters = (x.float() for x in pair_inputs(20, 12, (32, 16)))
    function, upstream = beside(mamba_inners, (6, 3)), torch.ones(20, 12, 48)
    y_before, (d_before, *_) = gradients(function, [xz, *parameters], upstream)
    xz[4, 3:6] = float("nan")
    y, (d, *_) = gradients(function, [xz, *parameters], upstream)
    assert y[4, 3:6].isnan().all()
    assert d[4, 3:6, :96].isnan().any()
    for one, other, second in ((y, y_before, 32), (d, d_before, 64)):
        one[4, :6], other[4, :6] = 0.0, 0.0  # a piece of the first block, and two of the second's
        assert torch.equal(one, other)
        assert one[..., second:].isfinite().all()


def test_blocks_side_by_side_are_each_block_alone_on_its_pieces():
    xz, *parameters = (x.float() for x in pair_inputs(8, 12, (32, 16)))
    y = mamba_inners(xz, (12, 3), (parameters[:7], parameters[7:]))
    assert torch.equal(y[..., :32], mamba_inner(xz[..., :64], *parameters[:7]))
    alone = mamba_inner(xz[..., 64:].reshape(32, 3, 32), *parameters[7:])
    assert torch.equal(y[..., 32:], alone.reshape(8, 12, 16))


@pytest.mark.parametrize("channels", [(32, 16), (5, 70)])
def test_members_with_blocks_side_by_side_are_computed_as_each_alone(channels):
    inputs = [x.float() for x in pair_inputs(20, 12, channels)]
    function, upstream = beside(mamba_inners, (12, 3)), torch.ones(20, 12, sum(channels))
    alone = [gradients(function, [scale * x for x in inputs], upstream) for scale in (1.0, 1.5)]
    y, found = gradients(torch.vmap(function), [torch.stack([x, 1.5 * x]) for x in inputs], upstream)
    for member, (y_alone, g_alone) in enumerate(alone):
        assert torch.equal(y[member], y_alone)
        assert all(torch.equal(one[member], other) for one, other in zip(found, g_alone, strict=True))


def test_reference_scan_is_the_recurrence_written_out():
    u, delta, A, B, C, D, z, bias = scan_inputs(1, 4, 2, 3)
    h, expected = np.zeros((2, 3)), []
    for t in range(4):
        dt = np.log1p(np.exp((delta[0, t] + bias).numpy()))
        for c in range(2):
            for n in range(3):
                h[c, n] = np.exp(dt[c] * A[c, n].item()) * h[c, n] + dt[c] * B[0, t, n].item() * u[0, t, c].item()
        y = h @ C[0, t].numpy() + D.numpy() * u[0, t].numpy()
        gate = z[0, t].numpy() / (1 + np.exp(-z[0, t].numpy()))
        expected.append(y * gate)
    np.testing.assert_allclose(selective_scan_ref(u, delta, A, B, C, D, z, bias)[0].numpy(), expected, rtol=1e-12)


def test_convolution_reference_is_causal_and_silu_follows():
    x, weight, bias = normal_of(0)(1, 5, 2), normal_of(1)(2, 3), normal_of(2)(2)
    padded = np.concatenate([np.zeros((2, 2)), x[0].numpy()])
    taps = weight.numpy()
    before = np.array([(padded[t : t + 3] * taps.T).sum(0) for t in range(5)]) + bias.numpy()
    np.testing.assert_allclose(causal_conv(x, weight, bias)[0].numpy(), before / (1 + np.exp(-before)), rtol=1e-12)


def test_members_of_a_population_are_computed_as_each_alone():
    inputs = [[x.float() for x in block_inputs(40, time, 6, 2)] for time in (9, 9)]
    inputs[1] = [x * 1.5 for x in inputs[1]]
    upstream = torch.randn(40, 9, 6, generator=torch.Generator().manual_seed(1))
    alone = [gradients(mamba_inner, each, upstream) for each in inputs]
    stacked = [torch.stack(each).requires_grad_() for each in zip(*inputs, strict=True)]
    y = torch.vmap(mamba_inner)(*stacked)
    together = torch.autograd.grad((y * upstream).sum(), stacked)
    for member, (y_alone, g_alone) in enumerate(alone):
        assert torch.equal(y[member], y_alone)
        assert all(torch.equal(one[member], other) for one, other in zip(together, g_alone, strict=True))


@pytest.mark.parametrize("shared", [0, 1])
def test_members_may_share_their_input_or_their_parameters(shared):
    xz, *parameters = (x.float() for x in block_inputs(3, 5, 6, 2))
    pair = [torch.stack([x, 2 * x]) for x in parameters] if shared == 0 else parameters
    given = xz if shared == 0 else torch.stack([xz, 2 * xz])
    y = torch.vmap(mamba_inner, in_dims=(None, *[0] * 7) if shared == 0 else (0, *[None] * 7))(given, *pair)
    twice = [2 * x for x in parameters] if shared == 0 else parameters
    assert torch.equal(y[1], mamba_inner(xz if shared == 0 else 2 * xz, *twice))


def test_gradients_do_not_depend_on_the_number_of_threads():
    inputs = [x.float() for x in block_inputs(40, 9, 70, 16)]
    upstream = torch.ones(40, 9, 70)
    threads = torch.get_num_threads()
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(gradients(mamba_inner, inputs, upstream)[1])
        assert torch.get_num_threads() == count
    torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("place", [3, 8 + 3])
def test_a_nan_goes_in_and_comes_out(place):
    inputs = [x.float() for x in block_inputs(1, 5, 8, 4)]
    inputs[0][0, 2, place] = float("nan")
    y = mamba_inner(*inputs)
    assert y[0, 2, 3].isnan()
    assert y[0, :2].isfinite().all()


def test_a_member_that_diverges_leaves_the_others_alone():
    parameters = [torch.stack([x.float()] * 3) for x in block_inputs(40, 9, 6, 2)]
    upstream = torch.ones(3, 40, 9, 6)
    expected = gradients(torch.vmap(mamba_inner), parameters, upstream)
    parameters[3][1] = float("nan")
    y, found = gradients(torch.vmap(mamba_inner), parameters, upstream)
    assert y[1].isnan().all()
    for one, other in zip((y, *found), (expected[0], *expected[1]), strict=True):
        assert torch.equal(one[[0, 2]], other[[0, 2]])


def test_no_sequences_give_no_gradients():
    inputs = [x.float() for x in block_inputs(0, 5, 8, 4)]
    y, found = gradients(mamba_inner, inputs, torch.ones(0, 5, 8))
    assert y.shape == (0, 5, 8)
    assert not any(x.any() for x in found)


def test_a_profiler_knows_the_kernels_by_name():
    inputs = [x.float() for x in block_inputs(1, 2, 8, 4)]
    with torch.profiler.profile() as watch:
        gradients(mamba_inner, inputs, torch.ones(1, 2, 8))
    assert {"scaling::mamba_inner", "scaling::mamba_inner_backward"} <= {event.name for event in watch.events()}


@njit
def each_number(function, x, y):
    for at in range(0, len(x), _vectors.LANES):
        _vectors.store(y, at, function(_vectors.load(x, at)))


@pytest.mark.parametrize(
    ("name", "exact", "low", "high"),
    [
        ("exp2", np.exp2, -125.0, 126.0),
        ("exp", np.exp, -86.0, 87.0),
        ("softplus", lambda x: np.logaddexp(0.0, x), -80.0, 80.0),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x)), -80.0, 80.0),
    ],
)
def test_vector_functions_are_accurate_to_single_precision(name, exact, low, high):
    x = np.linspace(low, high, 20000).astype(np.float32)
    found = np.empty_like(x)
    function = getattr(_vectors, name)
    each_number(njit(lambda numbers: function(numbers)), x, found)
    expected = exact(x.astype(np.float64))
    assert np.abs(found / expected - 1).max() < 5e-7


def test_without_a_faster_kernel_the_reference_serves():
    assert kernel_name("cpu") == "numba"
    assert kernel_name("cpu", torch.float64) == "reference"
    assert kernel_name("meta") == "reference"


@pytest.mark.parametrize(
    ("mamba_ssm", "triton", "names"),
    [
        (True, True, ["mamba_ssm", "mamba_ssm"]),
        (False, True, ["triton", "reference"]),
        (False, False, ["reference", "reference"]),
    ],
)
def test_on_cuda_the_kernel_is_one_of_those_installed(mamba_ssm, triton, names, monkeypatch):
    monkeypatch.setattr(selective_scan, "_mamba_ssm", lambda: selective_scan_ref if mamba_ssm else None)
    monkeypatch.setattr(selective_scan, "_triton_is_there", lambda: triton)
    assert [kernel_name("cuda", dtype) for dtype in (torch.float32, torch.float64)] == names
    assert kernel_name("cuda", mapped=True) == ("triton" if triton else "reference")


def feed_forward_inputs(width: int, *batch: int) -> list[Tensor]:
    normal = normal_of(width)
    return [
        normal(*batch, width),
        normal(4 * width, width),
        normal(4 * width),
        normal(width, 4 * width) / 2,
        normal(width),
    ]


@pytest.mark.parametrize("width", [1, 3, 8, 20, 64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("draw", [Draw(0.0), Draw(0.3, (12345,), 77)])
def test_feed_forward_agrees_with_double_reference_in_value_and_gradient(width, activation, draw):
    upstream = normal_of(1)(5, 11, width)
    fast, slow = (functools.partial(op, activation=activation, draw=draw) for op in (feed_forward, feed_forward_ref))
    assert_close_to_double(fast, slow, feed_forward_inputs(width, 5, 11), upstream)


def test_feed_forward_of_no_rows_is_nothing_and_moves_nothing():
    inputs = [x.float().requires_grad_() for x in feed_forward_inputs(8, 0)]
    y = feed_forward(*inputs, "gelu", Draw(0.5))
    assert y.shape == (0, 8)
    assert not any(slope.any() for slope in torch.autograd.grad(y.sum(), inputs))


@pytest.mark.parametrize("width", [5, 16])
def test_members_of_a_population_feed_forward_as_each_alone(width):
    stacked = [torch.stack([x, x / 2, -x]).float().requires_grad_() for x in feed_forward_inputs(width, 2, 7)]
    generators = tuple(torch.Generator().manual_seed(seed) for seed in range(3))
    seeds = [seed_from(torch.Generator().manual_seed(seed)) for seed in range(3)]
    draw = Draw(0.2, generators=generators)
    y = torch.vmap(lambda *given: feed_forward(*given, "gelu", draw))(*stacked)
    found = torch.autograd.grad(y.square().sum(), stacked)
    for member, seed in enumerate(seeds):
        alone = [x[member].detach().requires_grad_() for x in stacked]
        y_alone = feed_forward(*alone, "gelu", Draw(0.2, (seed,)))
        torch.testing.assert_close(y[member], y_alone, rtol=1e-5, atol=1e-5)
        for one, other in zip(found, torch.autograd.grad(y_alone.square().sum(), alone), strict=True):
            torch.testing.assert_close(one[member], other, rtol=1e-4, atol=1e-4)


def test_gelu_and_relu_are_right_everywhere_and_pass_nan_on():
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, -0.0, -1e4, 1e4, 1e-30, torch.nan])])
    exact = x.double().requires_grad_()
    for activation, reference in (("gelu", functional.gelu), ("relu", functional.relu)):
        slope, bias = x[:, None].clone(), torch.zeros(1)
        value = torch.ops.scaling.activate(slope, bias, activation == "relu")[:, 0]
        y = reference(exact)
        (expected,) = torch.autograd.grad(y[:-1].sum(), exact)
        torch.testing.assert_close(value.double(), y.detach(), rtol=3e-7, atol=3e-7, equal_nan=True)
        torch.testing.assert_close(slope[:-1, 0].double(), expected[:-1], rtol=1e-6, atol=1e-6)
        assert slope[-1].isnan()
