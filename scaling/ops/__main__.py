"""Compile every kernel, so that the first run need not: ``python -m scaling.ops``."""

import torch

from scaling.ops.mamba_inner import mamba_inner


def main() -> None:
    """Call the operator forward and backward on the smallest inputs; Numba keeps the machine code on disk."""
    xz, matrix, vector = (torch.ones(shape, requires_grad=True) for shape in ((1, 1, 2), (1, 1), (1,)))
    selecting = torch.ones(3, 1, requires_grad=True)
    mamba_inner(xz, matrix, vector, selecting, matrix, matrix, vector, vector).sum().backward()


if __name__ == "__main__":
    main()
