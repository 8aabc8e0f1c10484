"""A CUDA graph's stand-in on a CPU: what PyTorch was asked to compute is written down, and computed again on replay.

There is no CUDA here to capture with. As in a graph, whatever the host decided when the tape was made stays as it was,
and whatever would make the host wait for the device is refused. Of CUDA's own rules a tape knows nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

WAITING = ("aten._local_scalar_dense", "aten.nonzero", "aten.item", "aten.masked_select", "aten.equal")
"""Operations that bring a number to the host."""


class Tape(TorchDispatchMode):
    """Takes the place of :class:`scaling.replay.CudaGraph`."""

    made = 0

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.generators = generators
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Write an operation down."""
        if str(func).startswith(WAITING):
            raise RuntimeError(f"{func} waits for the device")
        result = func(*args, **(kwargs or {}))
        given = tree_map_only(Tensor, Tensor.detach, (args, kwargs or {}))
        self.calls.append((func, *given, [x.detach() for x in tree_leaves(result) if isinstance(x, Tensor)]))
        return result

    def warm(self, call: Callable[[], Tensor]) -> Tensor:
        """Nothing to prepare."""
        return call()

    def record(self, call: Callable[[], Tensor]) -> Tensor:
        """Unlike a graph, a tape computes while it records; what that has changed is taken back."""
        Tape.made += 1
        with self:
            result = call()
        self.undo = True
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Compute all again, into the tensors that were there; the first time that has been done already."""
        if self.undo:
            self.undo = False
            return
        for func, args, kwargs, results in self.calls:
            again = [x for x in tree_leaves(func(*args, **kwargs)) if isinstance(x, Tensor)]
            for place, value in zip(results, again, strict=True):
                if place.data_ptr() != value.data_ptr():
                    place.copy_(value)
