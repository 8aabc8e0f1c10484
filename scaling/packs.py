"""Which runs may be trained together, and how many at a time."""

from collections.abc import Hashable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Packs:
    """How runs are put together; a run that is not listed stays alone."""

    shapes: dict[str, Hashable] = field(default_factory=dict)
    """What each run must have in common with its company, by run_id."""
    sizes: dict[Hashable, int] = field(default_factory=dict)
    """How many of a shape are trained together."""
    shares: dict[Hashable, float] = field(default_factory=dict)
    """Time of a run in such a company, over that of one alone."""

    def size(self, name: str) -> int:
        """Of the pack that a run is to be in."""
        return self.sizes.get(self.shapes.get(name), 1)

    def share(self, name: str) -> float:
        """Time of a run over what it would take alone."""
        return self.shares.get(self.shapes.get(name), 1.0)
