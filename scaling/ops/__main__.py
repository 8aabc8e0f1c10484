"""Compile every kernel, so that the first run need not: ``python -m scaling.ops``."""

import torch

from scaling.ops.causal_conv import causal_conv
from scaling.ops.selective_scan import selective_scan


def main() -> None:
    """Call each operator forward and backward on the smallest inputs; Numba keeps the machine code on disk."""
    ones = {
        name: torch.ones(size, requires_grad=True) for name, size in {"stream": (1, 1, 1), "matrix": (1, 1)}.items()
    }
    stream, matrix, vector = ones["stream"], ones["matrix"], torch.ones(1, requires_grad=True)
    x = causal_conv(stream, matrix, vector)
    selective_scan(x, stream, -matrix, stream, stream, vector, stream, vector).sum().backward()


if __name__ == "__main__":
    main()
