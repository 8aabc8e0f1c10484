"""How sequences are shared out: in groups that add up gradients of parameters on their own, whoever computes them."""

from typing import NamedTuple

from scaling.ops._jit import jit

CHUNKS = 8
"""Most groups of a member: a constant, so that sums do not depend on threads, of which a pass cannot use more."""


class Shares(NamedTuple):
    """The sequences of a population, one member's after another's."""

    members: int
    each: int
    """Sequences of a member."""
    chunks: int
    """Groups of a member."""


def shares_of(members: int, each: int) -> Shares:
    """Groups of about as many sequences."""
    return Shares(members, each, min(each, CHUNKS))


@jit
def chunk(shares, number):  # type: ignore[no-untyped-def]
    """A group's member, and its first sequence and the one after its last, among those of all members."""
    member, part, each = number // shares.chunks, number % shares.chunks, shares.each
    return member, member * each + part * each // shares.chunks, member * each + (part + 1) * each // shares.chunks
