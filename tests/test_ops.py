"""The fast kernels against their references: values, gradients, odd sizes, threads, NaN."""

import numpy as np
import pytest
import torch
from torch import Tensor

from scaling.ops import _vector_math
from scaling.ops.causal_conv import causal_conv, causal_conv_ref
from scaling.ops.selective_scan import kernel_name, selective_scan, selective_scan_ref


def scan_inputs(batch: int, time: int, channels: int, states: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(time)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    u, z, delta = (normal(batch, time, channels) for _ in range(3))
    B, C = normal(batch, time, states), normal(batch, time, states)
    A = -torch.exp(normal(channels, states))
    return [u, delta - 1.0, A, B, C, normal(channels), z, normal(channels)]


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


@pytest.mark.parametrize("time", [1, 2, 3, 59, 60, 200])
@pytest.mark.parametrize(("batch", "channels", "states"), [(1, 5, 3), (3, 70, 16), (34, 64, 16)])
def test_scan_agrees_with_double_reference_in_value_and_gradient(time, batch, channels, states):
    inputs = scan_inputs(batch, time, channels, states)
    upstream = torch.randn(batch, time, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert_close_to_double(selective_scan, selective_scan_ref, inputs, upstream)


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


def test_scan_reads_slices_of_projections_without_a_contiguous_copy():
    whole = torch.randn(3, 7, 2 * 20 + 2 * 4 + 20)
    u, z, B, C, delta = whole.split([20, 20, 4, 4, 20], dim=-1)
    A, D, bias = -torch.rand(20, 4), torch.rand(20), torch.rand(20)
    given = selective_scan(u, delta, A, B, C, D, z, bias)
    copied = selective_scan(*(x.contiguous() for x in (u, delta, A, B, C, D, z, bias)))
    assert torch.equal(given, copied)


def test_gradients_do_not_depend_on_the_number_of_threads():
    inputs = [x.float() for x in scan_inputs(40, 9, 70, 16)]
    upstream = torch.ones(40, 9, 70)
    threads = torch.get_num_threads()
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(gradients(selective_scan, inputs, upstream)[1])
        assert torch.get_num_threads() == count
    torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_nan_goes_in_and_comes_out():
    inputs = [x.float() for x in scan_inputs(1, 5, 8, 4)]
    inputs[1][0, 2, 3] = float("nan")
    y = selective_scan(*inputs)
    assert y[0, 2:, 3].isnan().all()
    assert y[0, :2].isfinite().all()


@pytest.mark.parametrize("time", [1, 2, 3, 4, 61])
@pytest.mark.parametrize(("channels", "taps"), [(5, 4), (67, 4), (8, 1), (8, 7)])
def test_convolution_agrees_with_double_reference_in_value_and_gradient(time, channels, taps):
    generator = torch.Generator().manual_seed(time)
    shapes = [(3, time, channels), (channels, taps), (channels,)]
    inputs = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    upstream = torch.randn(3, time, channels, generator=generator, dtype=torch.float64)
    assert_close_to_double(causal_conv, causal_conv_ref, inputs, upstream)


def test_operators_satisfy_the_rules_of_custom_operators():
    scan = [x.float().requires_grad_() for x in scan_inputs(2, 5, 8, 4)]
    torch.library.opcheck(torch.ops.scaling.selective_scan.default, tuple(scan))
    conv = (torch.randn(2, 5, 8, requires_grad=True), torch.randn(8, 4, requires_grad=True), torch.randn(8))
    torch.library.opcheck(torch.ops.scaling.causal_conv.default, conv)


@pytest.mark.parametrize(
    ("name", "exact", "low", "high"),
    [
        ("exp", np.exp, -86.0, 87.0),
        ("softplus", lambda x: np.logaddexp(0.0, x), -80.0, 80.0),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x)), -80.0, 80.0),
    ],
)
def test_vector_functions_are_accurate_to_single_precision(name, exact, low, high):
    x = np.linspace(low, high, 20001).astype(np.float32)
    found = np.array([getattr(_vector_math, name)(value) for value in x])
    expected = exact(x.astype(np.float64))
    assert np.abs(found / expected - 1).max() < 5e-7


def test_without_a_faster_kernel_the_reference_serves():
    assert kernel_name("cpu") == "numba"
    assert kernel_name("cpu", torch.float64) == "reference"
    assert kernel_name("meta") == "reference"
