"""Dropout by the window's place in the batch."""

import itertools

import pytest
import torch

from scaling.layers.attention import Attention
from scaling.layers.dropout import Dropout, Share, take_share
from scaling.ops._masks import SIDE
from scaling.ops.dropout import Draw, dropout, dropout_ref, random_bits
from scaling.spec import ModelSpec


@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_entries_are_dropped_as_often_as_asked_and_the_rest_makes_up_for_it(p):
    torch.manual_seed(0)
    x = torch.full((1001, 1001), 3.0)
    dropped = Dropout(p)(x)
    kept = dropped != 0
    assert abs(kept.double().mean() - (1 - p)) < 5 * (p * (1 - p) / x.numel()) ** 0.5
    torch.testing.assert_close(dropped[kept], x[kept] / (1 - p))


def test_a_probability_next_to_one_drops_all():
    assert not Dropout(1 - 1e-12)(torch.ones(100, 100)).any()


def test_masks_are_others_each_time_and_the_same_from_the_same_seed():
    x, module = torch.ones(64, 64), Dropout(0.5)
    torch.manual_seed(0)
    first, second = module(x), module(x)
    torch.manual_seed(0)
    assert torch.equal(module(x), first)
    agreeing = (first == second).double().mean()
    assert abs(agreeing - 0.5) < 0.05


def test_shares_put_together_are_the_whole_whatever_the_cut():
    module, x = Dropout(0.3), torch.randn(7, 5, 4)
    torch.manual_seed(0)
    whole = module(x)
    for cuts in ([0, 3, 7], [0, 1, 2, 7], [0, 7]):
        parts = []
        for begin, stop in itertools.pairwise(cuts):
            torch.manual_seed(0)
            take_share(module, Share(begin, stop, 7))
            parts.append(module(x[begin:stop]))
        assert torch.equal(torch.cat(parts), whole)


def test_rows_of_one_window_stay_together():
    module, x = Dropout(0.5), torch.ones(6, 100)
    torch.manual_seed(0)
    whole = module(x)  # three windows of two rows each
    torch.manual_seed(0)
    module.share = Share(1, 3, 3)
    assert torch.equal(module(x[2:]), whole[2:])


@pytest.mark.parametrize("change", [lambda module: module.eval(), lambda module: setattr(module, "p", 0.0)])
def test_nothing_is_dropped_or_drawn_when_it_is_off(change):
    module, x = Dropout(0.5), torch.ones(4, 3)
    module.share = Share(0, 4, 8)
    change(module)
    before = torch.get_rng_state()
    assert torch.equal(module(x), x)
    assert torch.equal(torch.get_rng_state(), before)


def test_attention_in_shares_agrees_with_the_whole_in_value_and_gradient():
    attention = Attention(ModelSpec(width=8, heads=2, dropout=0.4)).double()
    u = torch.randn(5, 6, 8, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    whole = attention(u)
    whole.square().sum().backward()
    expected, u.grad = u.grad.clone(), None
    parts = []
    for begin, stop in ((0, 2), (2, 5)):
        torch.manual_seed(0)
        take_share(attention, Share(begin, stop, 5))
        parts.append(attention(u[begin:stop]))
    shared = torch.cat(parts)
    shared.square().sum().backward()
    torch.testing.assert_close(shared, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(u.grad, expected, rtol=1e-12, atol=1e-12)


def test_random_bits_are_those_of_philox():
    """The known answer of Random123's kat_vectors for philox4x32-10 with counter and key zero."""
    zeros = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert [random_bits(0, lane * SIDE) for lane in range(4)] == zeros


@pytest.mark.parametrize(("begin", "size"), [(0, 1), (0, 700), (77, 300), (5000, 9000)])
def test_the_kernel_drops_what_the_reference_drops_in_value_and_gradient(begin, size):
    x = torch.randn(size, dtype=torch.float64)
    draw = Draw(0.3, (2**63 - 5,), begin)
    single = x.float().requires_grad_()
    y, y_ref = dropout(single, draw), dropout_ref(x, draw)
    torch.testing.assert_close(y.double(), y_ref, rtol=1e-6, atol=0)
    (slope,) = torch.autograd.grad(y.sum(), single)
    torch.testing.assert_close(slope.double(), dropout_ref(torch.ones_like(x), draw), rtol=1e-6, atol=0)


@pytest.mark.parametrize("threads", [1, 2])
def test_members_mapped_over_drop_what_each_would_alone(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]
    x = torch.randn(3, 50, 101)
    seeds = [int(torch.randint(2**63 - 1, (), generator=torch.Generator().manual_seed(seed))) for seed in (1, 2, 3)]
    draw = Draw(0.4, generators=tuple(generators))
    together = torch.vmap(lambda one: dropout(one, draw), in_dims=1, out_dims=1)(x.movedim(0, 1)).movedim(1, 0)
    torch.set_num_threads(before)
    for own, seed, one in zip(together, seeds, x, strict=True):
        assert torch.equal(own, dropout(one, Draw(0.4, (seed,))))
