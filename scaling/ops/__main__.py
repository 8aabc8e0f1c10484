"""Compile every kernel, so that the first run need not: ``python -m scaling.ops``."""

import torch

from scaling.ops.dropout import Draw, dropout
from scaling.ops.feed_forward import feed_forward
from scaling.ops.mamba_block import mamba_blocks


def main() -> None:
    """Call the operators forward and backward on the smallest inputs; Numba keeps the machine code on disk."""
    u, matrix, vector, pair, three = (
        torch.ones(shape, requires_grad=True) for shape in ((1, 1, 1), (1, 1), (1,), (2, 1), (3, 1))
    )
    mamba_blocks(u, [1], [(pair, matrix, vector, three, matrix, matrix, vector, vector, matrix)]).sum().backward()
    draw = Draw(0.5)
    feed_forward(dropout(matrix, draw), matrix, vector, matrix, vector, "gelu", draw).sum().backward()


if __name__ == "__main__":
    main()
