"""Rivals timed side by side: in turns, in one process, so that a drifting machine touches all alike."""

import math
import statistics
import time
from collections.abc import Callable, Mapping

LEAST = 0.3
"""Seconds of a turn, at least: what is short is called several times, so that it finds the caches as it leaves them."""


def in_turns(rivals: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each rival over ``rounds`` turns, after one turn that does not count."""
    took: dict[str, list[float]] = {name: [] for name in rivals}
    calls = dict.fromkeys(rivals, 1)
    for turn in range(rounds + 1):
        for name, call in rivals.items():
            begin = time.perf_counter()
            for _ in range(calls[name]):
                call()
            seconds = (time.perf_counter() - begin) / calls[name]
            if turn:
                took[name].append(seconds)
            else:
                calls[name] = max(1, math.ceil(LEAST / seconds))
    return {name: statistics.median(values) for name, values in took.items()}


def table(title: str, seconds: Mapping[str, float], ours: str) -> str:
    """Markdown: milliseconds, and how many times slower each rival is than ``ours``."""
    lines = [f"### {title}", "", "| what | ms | times ours |", "|---|---|---|"]
    lines += [f"| {name} | {1e3 * value:.1f} | {value / seconds[ours]:.1f} |" for name, value in seconds.items()]
    return "\n".join(lines) + "\n"
