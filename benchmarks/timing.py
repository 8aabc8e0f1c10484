"""Rivals timed side by side: in turns, in one process, so that a drifting machine touches all alike."""

import statistics
import time
from collections.abc import Callable, Mapping


def in_turns(rivals: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each rival over ``rounds`` turns, after one turn that does not count."""
    took: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(rounds + 1):
        for name, call in rivals.items():
            begin = time.perf_counter()
            call()
            if turn:
                took[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in took.items()}


def table(title: str, seconds: Mapping[str, float], ours: str) -> str:
    """Markdown: milliseconds, and how many times slower each rival is than ``ours``."""
    lines = [f"### {title}", "", "| what | ms | times ours |", "|---|---|---|"]
    lines += [f"| {name} | {1e3 * value:.1f} | {value / seconds[ours]:.1f} |" for name, value in seconds.items()]
    return "\n".join(lines) + "\n"
