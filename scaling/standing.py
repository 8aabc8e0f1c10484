"""How a sweep stands, as its root tells it: done, failed, running, stale, waiting, and how long the rest will take."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scaling import claims, results
from scaling.claims import Said
from scaling.manifest import Known
from scaling.root import Root, now

SKEW = 5.0
"""Seconds by which two clocks may differ without a word."""

COLUMNS = ("status", "error", "finished", "loss_best", "train_seconds", "evaluate_seconds")


@dataclass(frozen=True)
class Working:
    """A run that somebody has claimed."""

    said: Said
    seconds: float
    """Since when, at the root's time."""
    silent: float
    """Seconds since the claim was renewed."""
    skew: float
    """Seconds by which the worker's clock is ahead of the root's."""


@dataclass(frozen=True)
class Standing:
    """The runs of a sweep by run_id."""

    done: dict[str, dict[str, Any]]
    failed: dict[str, dict[str, Any]]
    running: dict[str, Working]
    stale: dict[str, Working]
    """Claimed by processes that are gone or have been silent for too long; whoever comes takes them over."""
    waiting: list[str]

    @property
    def left(self) -> list[str]:
        """Runs that are not done and did not fail, or are being done again."""
        return [*self.running, *self.stale, *self.waiting]

    @property
    def best(self) -> float | None:
        """Lowest loss of all."""
        return min((row["loss_best"] for row in self.done.values()), default=None)

    def seconds_left(self, known: Mapping[str, Known]) -> float | None:
        """Process seconds for the runs left, from what those of their model took; nothing before the first is done.

        A model of which none is done takes as long per FLOP as all others.
        """
        took: dict[str, list[float]] = {}
        flops: dict[str, list[float]] = {}
        for name, row in self.done.items():
            group = _group(known[name])
            took.setdefault(group, []).append(row["train_seconds"] + row["evaluate_seconds"])
            flops.setdefault(group, []).append(known[name].flops)
        if not took or not self.left:
            return None
        overall = sum(map(sum, took.values())) / max(sum(map(sum, flops.values())), 1e-300)

        def whole(name: str) -> float:
            same = took.get(_group(known[name]))
            return float(np.mean(same)) if same else overall * known[name].flops

        return sum(whole(name) * (1 - self._share(name, known[name])) for name in self.left)

    def _share(self, name: str, known: Known) -> float:
        """The part of a run under way that is done."""
        working = self.running.get(name)
        return min(1.0, working.said.get("update", 0) / max(1, known.updates)) if working else 0.0


def _group(known: Known) -> str:
    return known.label.partition(",")[0]


def look(root: Root, run_ids: list[str]) -> Standing:
    """How the runs stand at this moment."""
    files = root.files()
    running, stale = _claimed(root, files, set(run_ids))
    claimed = {claims.run_of(path) for path in files if claims.is_claim(path)}  # may have its row by now
    there = [name for name in run_ids if results.row_path(name) in files or name in claimed]
    rows = results.brief(root, there, COLUMNS)
    return Standing(
        done={name: rows[name] for name in run_ids if name in rows and rows[name]["status"] == results.DONE},
        failed={name: rows[name] for name in run_ids if name in rows and rows[name]["status"] == results.FAILED},
        running={name: working for name, working in running.items() if not _is_done(rows.get(name))},
        stale={name: working for name, working in stale.items() if name not in rows and name not in running},
        waiting=[name for name in run_ids if name not in rows and name not in running and name not in stale],
    )


def _is_done(row: dict[str, Any] | None) -> bool:
    return row is not None and row["status"] == results.DONE


def _claimed(root: Root, files: dict[str, float], run_ids: set[str]) -> tuple[dict[str, Working], dict[str, Working]]:
    """Runs with a live claim, and with none but void ones."""
    live: dict[str, Working] = {}
    void: dict[str, Working] = {}
    claimed = {path: changed for path, changed in files.items() if claims.is_claim(path)}
    present = now(root) if claimed else 0.0
    for path, changed in claimed.items():
        name, said = claims.run_of(path), claims.read(root, path)
        if name not in run_ids or said is None:
            continue
        silent = max(0.0, present - changed)
        working = Working(said, said["time"] - said["since"] + silent, silent, said["time"] - changed)
        (void if claims.is_dead(said) or silent > claims.STALE else live)[name] = working
    return live, void
