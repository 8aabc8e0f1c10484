"""Compile every kernel, so that the first run need not: ``python -m scaling.ops``."""

import torch

from scaling.ops.dropout import Draw, dropout
from scaling.ops.layers import Form, layers


def main() -> None:
    """Call the operators forward and backward on the smallest inputs; Numba keeps the machine code on disk."""
    x, matrix, vector, pair, three = (
        torch.ones(shape, requires_grad=True) for shape in ((1, 1, 1), (1, 1), (1,), (2, 1), (3, 1))
    )
    block = [pair, x, vector, three, matrix, matrix, vector, vector, matrix]
    norm, network, draw = [vector, vector], [matrix, vector, matrix, vector], Draw(0.5)
    form = Form((1,), activation="gelu")
    layers(dropout(x, draw), form, [draw], [*block, *norm, *network, *norm]).sum().backward()


if __name__ == "__main__":
    main()
