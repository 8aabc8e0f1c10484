"""An update as a function of tensors: called or, on a GPU, recorded once as a CUDA graph and played from then on.

Played, it launches nothing: the host hands over what is new, and is not waited for. What a graph computes with stays
where it is, so all that changes from update to update must come in as an argument.
"""

import os
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from scaling.errors import UserError

WARM_UP = 3
"""Updates that are called before one is recorded: libraries choose their kernels in their first calls."""

SWITCH = "SCALING_CUDA_GRAPHS"
"""Environment variable; 0: updates are called on GPUs too."""

Numbers = Sequence[float | Tensor]
"""Floats or, on a GPU, scalars there."""
Compute = Callable[[Sequence[Tensor], Numbers], Tensor]
"""An update, from tensors on the device and numbers."""


def scalars(numbers: Numbers, device: torch.device) -> Tensor:
    """Numbers as one tensor on a device, where they are already if they are tensors."""
    return torch.stack([x if isinstance(x, Tensor) else torch.tensor(x) for x in numbers]).to(device)


class Graph(Protocol):
    """Something that records and plays."""

    def warm(self, call: Callable[[], Tensor]) -> Tensor:
        """Call, in the way that a recording wants to be prepared."""

    def record(self, call: Callable[[], Tensor]) -> Tensor:
        """Record, without computing; the tensor into which each replay puts its result."""

    def replay(self) -> None:
        """Compute what was recorded, with what lies now where it lay then."""


class CudaGraph:
    """A CUDA graph, captured on a stream of its own."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self.graph, self.stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        for generator in generators:
            self.graph.register_generator_state(generator)

    def warm(self, call: Callable[[], Tensor]) -> Tensor:
        """Call on the stream that will capture."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = call()
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def record(self, call: Callable[[], Tensor]) -> Tensor:
        """Capture.

        Raises:
            UserError: something waits for the GPU, or cannot be captured for another reason.

        """
        before, wrong = torch.cuda.current_stream(), None
        try:
            with torch.cuda.graph(self.graph, stream=self.stream):
                try:
                    result = call()
                except RuntimeError as error:  # the end of the capture fails then too, and would hide it
                    wrong = error
                    raise
        except RuntimeError as error:
            torch.cuda.set_stream(before)
            wrong = wrong or error
            if isinstance(wrong, torch.OutOfMemoryError):
                raise wrong from None
            raise UserError(
                f"an update cannot be recorded as a CUDA graph: {str(wrong).splitlines()[0]}; a step must not wait for "
                f"the GPU, as .item() does; {SWITCH}=0 goes without"
            ) from wrong
        return result

    def replay(self) -> None:
        """Launch the graph."""
        self.graph.replay()


def can_record(device: torch.device) -> bool:
    """Whether updates on this device are to be recorded."""
    return device.type == "cuda" and os.environ.get(SWITCH) != "0"


class Update:
    """An update that may be recorded."""

    def __init__(
        self, compute: Compute, device: torch.device, generators: Sequence[torch.Generator] = (), alone: bool = True
    ) -> None:
        """Nothing is computed yet.

        Args:
            compute: the update. It must not wait for the device, and its arguments have the same shapes each time.
            device: where it computes.
            generators: those it draws from, besides PyTorch's own.
            alone: whether it is one process's, in one part; else it is always called.

        """
        self.compute, self.device, self.generators = compute, device, list(generators)
        self.records = alone and can_record(device)
        """Whether to record, and to play what was recorded."""
        self.calls = 0
        self.graph: Graph | None = None
        self.given: list[Tensor] = []
        self.numbers = self.result = torch.zeros(0)

    @property
    def first(self) -> int:
        """Calls after which all are alike."""
        return WARM_UP + 1 if self.records else 1

    def __call__(self, given: Sequence[Tensor], numbers: Sequence[float]) -> Tensor:
        """What the update returns, from tensors of the host; on a GPU valid until the next one."""
        if not self.records:
            return self.compute([x.to(self.device, non_blocking=True) for x in given], numbers)
        self._take(given, numbers)
        self.calls += 1
        if self.graph is None:
            self.graph = CudaGraph(self.generators)
        if self.calls <= WARM_UP:
            return self.graph.warm(self._call)
        if self.calls == WARM_UP + 1:
            self.result = self.graph.record(self._call)
        self.graph.replay()
        return self.result

    def _take(self, given: Sequence[Tensor], numbers: Sequence[float]) -> None:
        """Put the arguments where the graph finds them."""
        fresh = [*given, torch.tensor(numbers, dtype=torch.float32)]
        if not self.given:
            *self.given, self.numbers = [torch.empty_like(x, device=self.device) for x in fresh]
        for place, x in zip((*self.given, self.numbers), fresh, strict=True):
            place.copy_(x.pin_memory() if place.is_cuda else x, non_blocking=True)

    def _call(self) -> Tensor:
        return self.compute(self.given, self.numbers.unbind())
