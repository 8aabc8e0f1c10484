"""Independent pieces of work, one after another or spread over Ray workers; each leaves its result on disk."""

from collections.abc import Callable, Sequence
from typing import Protocol

from scaling.errors import UserError


class Piece(Protocol):
    """Something to make."""

    def make(self) -> None:
        """Make it, whole or not at all."""


def make_all(pieces: Sequence[Piece], workers: int, made: Callable[[Piece], None]) -> None:
    """Make all pieces; ``made`` is told of each as it is finished, in any order."""
    if workers > 1 and len(pieces) > 1:
        _spread(pieces, workers, made)
        return
    for piece in pieces:
        piece.make()
        made(piece)


def _spread(pieces: Sequence[Piece], workers: int, made: Callable[[Piece], None]) -> None:
    import ray  # takes seconds to start; only several workers need it

    from scaling.local_ray import local_ray  # imports ray

    with local_ray(workers):
        make = ray.remote(num_cpus=1)(_make)
        waiting = list(reversed(pieces))
        under_way: dict[ray.ObjectRef, Piece] = {}
        try:
            while waiting or under_way:
                while waiting and len(under_way) < 2 * workers:
                    piece = waiting.pop()
                    under_way[make.remote(piece)] = piece
                for done in ray.wait(list(under_way))[0]:
                    ray.get(done)
                    made(under_way.pop(done))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise UserError("a worker process died, perhaps for lack of memory; try fewer --workers") from error


def _make(piece: Piece) -> None:
    piece.make()
