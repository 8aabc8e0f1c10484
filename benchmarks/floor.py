"""The least time that a training step's matrix products can take on the machine at hand.

floor = FLOPs of the step's products with weights / rate of a large product in single precision
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.steps import Batches
from scaling.layers.feed_forward import FeedForward
from scaling.layers.mamba import Mamba

PASSES = 3
"""Products per weight matrix and step: the output, and the gradients of input and weight. Those of the first layer's
input are counted although nobody needs them, as in the C of a run."""


def product(size: int) -> Callable[[], object]:
    """A product of two square matrices, to be timed."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator) for _ in range(2))
    out = torch.empty(size, size)
    return lambda: torch.mm(left, right, out=out)


def product_flops(size: int) -> int:
    """Floating-point operations of :func:`product`."""
    return 2 * size**3


def step_flops(model: nn.Module, batches: Batches) -> int:
    """Floating-point operations of a training step's products with weights; scan, taps and activations are left out."""
    return PASSES * forward_flops(model, batches)


@torch.no_grad()
def forward_flops(model: nn.Module, batches: Batches) -> int:
    """Two per weight and row, over the rows that each matrix sees in a forward pass.

    The projections inside a Mamba block, and the layers of a feed-forward network, need not be called as modules; they
    see as many rows as the whole does.
    """
    counted: list[int] = []

    def count(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        rows = given[0].numel() // given[0].shape[-1]
        counted.append(2 * _weights(module) * rows)

    inside = {part for module in model.modules() if isinstance(module, FeedForward) for part in module}
    watched = (
        module
        for module in model.modules()
        if isinstance(module, Mamba | FeedForward | nn.Linear) and module not in inside
    )
    hooks = [module.register_forward_hook(count) for module in watched]
    try:
        model(*batches()[0])
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counted)


def _weights(module: nn.Module) -> int:
    """In the matrices that a module's hook answers for."""
    if isinstance(module, Mamba):
        return module.x_proj.weight.numel() + module.dt_proj.weight.numel()
    if isinstance(module, FeedForward):
        return sum(_weights(part) for part in module if isinstance(part, nn.Linear))
    assert isinstance(module, nn.Linear)
    return module.weight.numel()
