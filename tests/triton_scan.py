"""The Triton kernels under Triton's interpreter; ``test_triton.py`` runs this file in a process of its own."""

import pytest
import torch
from test_ops import assert_close_to_double, gradients, normal_of, scan_inputs

from scaling.ops.selective_scan import selective_scan_ref, selective_scan_triton

SHAPES = [(time, 5, 3) for time in (1, 2, 15, 16, 17, 40)] + [(time, 48, 16) for time in (2, 17, 40)] + [(3, 3, 600)]


@pytest.mark.parametrize(("time", "channels", "states"), SHAPES)
def test_scan_agrees_with_double_reference_in_value_and_gradient(time, channels, states):
    inputs, upstream = scan_inputs(2, time, channels, states), normal_of(1)(2, time, channels)
    assert_close_to_double(selective_scan_triton, selective_scan_ref, inputs, upstream)


def test_steps_keep_their_digits_however_short():
    delta = torch.linspace(-30.0, 30.0, 61, dtype=torch.float64)[None, None]
    zeros, ones, one = torch.zeros(61), torch.ones(1, 1, 61), torch.ones(1, 1, 1)
    y = selective_scan_triton(ones, delta.float(), zeros[:, None], one, one, zeros, ones, zeros)
    y_ref = torch.logaddexp(delta, torch.zeros(())) * torch.sigmoid(torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(y.double(), y_ref, rtol=1e-6, atol=0.0)


def test_tensors_need_not_be_contiguous_nor_in_single_precision():
    inputs = [x.float() for x in scan_inputs(2, 5, 6, 4)]
    for place, number in ((0, torch.bfloat16), (6, torch.bfloat16)):
        inputs[place] = inputs[place].to(number)
    apart = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in inputs]
    upstream = normal_of(1)(2, 5, 6).float()
    y, found = gradients(selective_scan_triton, inputs, upstream)
    y_apart, found_apart = gradients(selective_scan_triton, apart, upstream)
    assert torch.equal(y, y_apart)
    assert all(torch.equal(one, other) for one, other in zip(found, found_apart, strict=True))
    assert found[0].dtype == torch.bfloat16
    torch.testing.assert_close(y, selective_scan_ref(*inputs), rtol=1e-2, atol=1e-2)


def population(members: int) -> list[torch.Tensor]:
    stacked = [torch.stack([x.float()] * members) for x in scan_inputs(2, 3, 5, 3)]
    return [x * torch.linspace(0.5, 1.0, members).view(-1, *[1] * (x.ndim - 1)) for x in stacked]


def test_members_of_a_population_are_computed_as_each_alone():
    stacked, upstream = population(2), normal_of(1)(2, 2, 3, 5).float()
    y, found = gradients(torch.vmap(selective_scan_triton), stacked, upstream)
    for member in range(2):
        y_alone, alone = gradients(selective_scan_triton, [x[member] for x in stacked], upstream[member])
        assert torch.equal(y[member], y_alone)
        assert all(torch.equal(one[member], other) for one, other in zip(found, alone, strict=True))


def test_members_may_share_their_sequences():
    u, delta, A, B, C, D, z, bias = population(2)
    shared = torch.vmap(selective_scan_triton, in_dims=(None, 0, 1, None, 0, 0, None, 0))
    y = shared(u[0], delta, A.movedim(0, 1), B[0], C, D, z[0], bias)
    assert torch.equal(y[1], selective_scan_triton(u[0], delta[1], A[1], B[0], C[1], D[1], z[0], bias[1]))


@pytest.mark.parametrize("place", [0, 1, 4])
def test_a_nan_goes_in_and_comes_out(place):
    inputs = [x.float() for x in scan_inputs(2, 18, 2, 2)]
    inputs[place][0, 16] = float("nan")
    y, found = gradients(selective_scan_triton, inputs, torch.ones(2, 18, 2))
    assert y[0, 16].isnan().all()
    assert y[0, :16].isfinite().all()
    assert y[1].isfinite().all()
    assert all(found[parameter].isnan().any() for parameter in (2, 7))
    assert all(found[sequence][1].isfinite().all() for sequence in (0, 1, 3, 4, 6))


def test_a_member_that_diverges_leaves_the_others_alone():
    inputs, upstream = population(3), torch.ones(3, 2, 3, 5)
    expected = gradients(torch.vmap(selective_scan_triton), inputs, upstream)
    for place in (2, 5, 7):
        inputs[place][1] = float("nan")
    y, found = gradients(torch.vmap(selective_scan_triton), inputs, upstream)
    assert y[1].isnan().all()
    for one, other in zip((y, *found), (expected[0], *expected[1]), strict=True):
        assert one[[0, 2]].isfinite().all()
        assert torch.equal(one[[0, 2]], other[[0, 2]])


def test_a_profiler_knows_the_kernels_by_name():
    inputs = [x.float() for x in scan_inputs(1, 2, 3, 2)]
    with torch.profiler.profile() as watch:
        gradients(selective_scan_triton, inputs, torch.ones(1, 2, 3))
    assert {"scaling::selective_scan", "scaling::selective_scan_backward"} <= {event.name for event in watch.events()}
