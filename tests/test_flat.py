"""A network's gradients in a row: each at its parameter's place, all of an update, none left for the next; clipped."""

import pytest
import torch
from torch import nn

from scaling.flat import Flat, clip


class Partial(nn.Module):
    """Uses one of its two layers, and of that one the weight is what is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 2), nn.Linear(2, 2)
        self.used.bias.requires_grad_(requires_grad=False)

    def forward(self, x):
        return self.used(x)


@pytest.mark.parametrize("parts", [1, 2])
def test_gradients_of_all_parts_are_gathered_and_forgotten(parts):
    model, x = Partial(), torch.arange(12.0).reshape(4, 3)
    flat = Flat(model, weight_decay=0.1)
    for _ in range(2):
        for part in x.chunk(parts):
            model(part).sum().backward()
        flat.gather()
        named = dict(zip(flat.layout.shapes, flat.layout.split(flat.slopes).values(), strict=True))
        assert torch.equal(named["used.weight"], x.sum(0).expand(2, 3))
        assert not named["unused.weight"].any()
        assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.cat([part.grad for part in flat.parts]), flat.slopes)


def test_rows_are_clipped_as_pytorch_clips_each():
    rows, largest = (
        torch.randn(5, 7, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0.5, 1e3, 2.0, 1.0, 1.0]),
    )
    rows[2], rows[3, 2], rows[4, 1] = 0.0, torch.nan, torch.inf
    expected = rows.clone()
    for row, limit in zip(expected, largest.tolist(), strict=True):
        alone = row.clone()
        parameter = nn.Parameter(torch.zeros(7))
        parameter.grad = row
        nn.utils.clip_grad_norm_(parameter, limit)
        clip(alone, limit)
        torch.testing.assert_close(alone, row, equal_nan=True)
    torch.testing.assert_close(expected[1], rows[1], rtol=0, atol=0)
    clip(rows, largest)
    torch.testing.assert_close(rows, expected, equal_nan=True)
    assert rows[3].isnan().all()
