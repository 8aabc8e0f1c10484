"""What is done to a sweep under way: processes killed, a node lost, a disk full, a folder read-only."""

import itertools
import json
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import processes
from benchmarks.driving import Driver
from benchmarks.mounts import FullDisk, ReadOnly, Spell
from benchmarks.small_cluster import SmallCluster

KILLS = {"trial": 8, "desk": 1, "member": 0, "driver": 4, "interrupt": 2, "node": 5}
"""Kinds of disturbance that hit processes, and how often each is chosen when runs have one process."""
TEAM_KILLS = {"trial": 5, "desk": 1, "member": 5, "driver": 4, "interrupt": 2, "node": 3}
"""The same when they have several."""
SPELLS: dict[str, Callable[[Path], Spell]] = {"full disk": FullDisk, "read-only": ReadOnly}
SPELL_SECONDS = (3.0, 9.0)
PAUSE = (0.3, 3.0)
"""Between two disturbances, where no row need be waited for."""
LAST = 0.96
"""Share of the runs that are done when the last disturbance falls due."""


@dataclass(frozen=True)
class Due:
    """A disturbance to come."""

    kind: str
    rows: int
    """How many runs must be done before."""
    pause: float
    """Seconds after the disturbance before it, and for half of them after the last of those rows too: these hit any
    moment, the others often that at which a run ends."""
    draw: int
    """Decides whom it hits, or how long it lasts."""


@dataclass(frozen=True)
class Done:
    """A disturbance that was."""

    seconds: float
    """Since the sweep began."""
    kind: str
    what: str
    rows: int
    """Runs done at that time."""


@dataclass(frozen=True)
class Scene:
    """What can be hit."""

    root: Path
    driver: Driver
    cluster: SmallCluster | None


def plan(generator: np.random.Generator, runs: int, kills: Mapping[str, int], spells: int) -> list[Due]:
    """Disturbances in a random order, spread evenly over the rows of a sweep.

    Args:
        generator: of all that is random.
        runs: of the sweep.
        kills: how many of each kind.
        spells: how many of each kind of trouble with the disk.

    """
    kinds = [kind for kind, count in {**kills, **dict.fromkeys(SPELLS, spells)}.items() for _ in range(count)]
    shares = (np.arange(len(kinds)) + generator.uniform(size=len(kinds))) / max(1, len(kinds))
    return [
        Due(str(kind), int(LAST * runs * share), float(generator.uniform(*PAUSE)), int(generator.integers(1 << 30)))
        for kind, share in zip(generator.permutation(kinds), shares, strict=True)
    ]


def shared_out(kills: int, weights: Mapping[str, int]) -> dict[str, int]:
    """How many kills of each kind, in proportion to the weights."""
    turns = sorted((turn / weight, kind) for kind, weight in weights.items() for turn in range(1, weight + 1))
    counts = dict.fromkeys(weights, 0)
    for _, kind in itertools.islice(itertools.cycle(turns), kills):
        counts[kind] += 1
    return counts


class Harm:
    """Does what is due, one thing at a time."""

    def __init__(self, scene: Scene, dues: list[Due]) -> None:
        self.scene, self.dues = scene, list(dues)
        self.done: list[Done] = []
        self._begin = self._last = time.monotonic()
        self._ready: float | None = None
        self._spell: Spell | None = None
        self._until = 0.0

    def step(self, rows: int) -> Done | None:
        """Do what is due now that so many rows are there; what was done, if anything was."""
        now = time.monotonic()
        if self._spell is not None:
            self._hold(now)
        elif self.dues and rows >= self.dues[0].rows and self._is_time(self.dues[0], now):
            return self._do(self.dues[0], rows)
        return None

    def _is_time(self, due: Due, now: float) -> bool:
        self._ready = self._ready or now
        since = max(self._last, self._ready) if due.draw % 2 else self._last
        return now - since >= due.pause

    def _hold(self, now: float) -> None:
        assert self._spell is not None
        if now < self._until:
            self._spell.hold()
            return
        self.end()

    def end(self) -> None:
        """Make good what lasts."""
        if self._spell is not None:
            self._spell.end()
            self._spell, self._last = None, time.monotonic()

    def _do(self, due: Due, rows: int) -> Done | None:
        """Do it if there is somebody under way to be hit."""
        if not working(self.scene):
            return None
        what = self._begin_spell(due) if due.kind in SPELLS else HITS[due.kind](self.scene, due.draw)
        if what is None:
            return None
        self._last = time.monotonic()
        self.dues.pop(0)
        self._ready = None
        self.done.append(Done(round(self._last - self._begin, 1), due.kind, what, rows))
        return self.done[-1]

    def _begin_spell(self, due: Due) -> str:
        seconds = float(np.random.default_rng(due.draw).uniform(*SPELL_SECONDS))
        self._spell, self._until = SPELLS[due.kind](self.scene.root), time.monotonic() + seconds
        return f"for {seconds:.1f} s"

    def told(self) -> list[dict[str, Any]]:
        """What was done, as plain values."""
        return [asdict(done) for done in self.done]


def working(scene: Scene) -> list[dict[str, Any]]:
    """What the claims say whose processes live and were started for the driver of now."""
    found = []
    alive = processes.descendants()
    for path in sorted(scene.root.glob("*/claim-*.json")):
        try:
            said = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if said["pid"] in alive and said["since"] > scene.driver.since:
            found.append({**said, "run": path.parent.name})
    return found


def _hit_trial(scene: Scene, draw: int) -> str | None:
    chosen = _one_of(working(scene), draw)
    if chosen is None or not processes.kill(chosen["pid"]):
        return None
    return f"process {chosen['pid']} of run {chosen['run']}, at update {chosen.get('update', 0)}"


def _hit_actor(name: str) -> Callable[[Scene, int], str | None]:
    def hit(scene: Scene, draw: int) -> str | None:
        found = [pid for pid, title in processes.descendants().items() if title.startswith(f"ray::{name}")]
        pid = _one_of(sorted(found), draw)
        return f"process {pid}" if pid is not None and processes.kill(pid) else None

    return hit


def _hit_driver(scene: Scene, draw: int) -> str | None:
    return f"driver {scene.driver.pid}" if scene.driver.signal(signal.SIGKILL) else None


def _interrupt_driver(scene: Scene, draw: int) -> str | None:
    return f"driver {scene.driver.pid} asked to stop" if scene.driver.signal(signal.SIGTERM) else None


def _hit_node(scene: Scene, draw: int) -> str | None:
    return scene.cluster.replace() if scene.cluster else None


def _one_of(found: list[Any], draw: int) -> Any:
    return found[draw % len(found)] if found else None


HITS: dict[str, Callable[[Scene, int], str | None]] = {
    "trial": _hit_trial,
    "desk": _hit_actor("Desk"),
    "member": _hit_actor("_Member"),
    "driver": _hit_driver,
    "interrupt": _interrupt_driver,
    "node": _hit_node,
}
