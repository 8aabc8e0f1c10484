"""The least time that a training step's matrix products can take on the machine at hand.

floor = FLOPs of the step's products with weights / rate of a large product in single precision
"""

from collections.abc import Callable

import torch

from benchmarks.steps import HOPPER, Point
from scaling import plug

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


def step_flops(point: Point) -> int:
    """Floating-point operations of a training step's products with weights; scan, taps and activations are left out."""
    spec = point.spec()
    forward: int = plug.load("models", spec.kind).products(spec, HOPPER, point.context)
    return PASSES * point.batch * forward
