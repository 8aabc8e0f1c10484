"""Compile every kernel, so that the first run need not: ``python -m scaling.ops``."""

import torch

from scaling.ops.dropout import Draw, dropout
from scaling.ops.feed_forward import feed_forward
from scaling.ops.mamba_inner import mamba_inner


def main() -> None:
    """Call the operators forward and backward on the smallest inputs; Numba keeps the machine code on disk."""
    xz, matrix, vector = (torch.ones(shape, requires_grad=True) for shape in ((1, 1, 2), (1, 1), (1,)))
    selecting = torch.ones(3, 1, requires_grad=True)
    mamba_inner(xz, matrix, vector, selecting, matrix, matrix, vector, vector).sum().backward()
    draw = Draw(0.5)
    feed_forward(dropout(matrix, draw), matrix, vector, matrix, vector, "gelu", draw).sum().backward()


if __name__ == "__main__":
    main()
