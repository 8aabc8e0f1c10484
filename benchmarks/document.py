"""Tables, and the one document they make, as Markdown and as JSON."""

import dataclasses
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Cell = str | float | int | None
"""Nothing where there is no number."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How everything is measured."""

    threads: int
    rounds: int
    quick: bool = False
    """On sizes of a second, to see that it runs; the numbers mean nothing."""
    mamba_ssm: Path | None = None
    """An unpacked source of mamba-ssm, where it is not installed."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows that have the same columns."""

    title: str
    rows: list[dict[str, Cell]]
    facts: dict[str, float] = field(default_factory=dict)
    """What follows from the rows."""
    note: str = ""

    def markdown(self) -> str:
        """Title, rows, facts and note."""
        columns = list(self.rows[0])
        lines = [f"## {self.title}", "", _line(columns), _line(["---"] * len(columns))]
        lines += [_line([_shown(row[column]) for column in columns]) for row in self.rows]
        said = "; ".join(f"{name} {_shown(value)}" for name, value in self.facts.items())
        lines += [text for part in (f"{said}." if said else "", self.note) if part for text in ("", part)]
        return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.2f}"
    return "" if cell is None else f"{cell:,}" if isinstance(cell, int) else cell


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {"processor": _processor(), "cpus": os.cpu_count(), "torch": torch.__version__}


def _processor() -> str:
    """The processor's name where Linux tells it, else its kind."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def markdown(settings: Settings, tables: Sequence[Table]) -> str:
    """The whole document."""
    on = machine()
    said = (
        f"{settings.threads} threads of {on['cpus']} ({on['processor']}), PyTorch {on['torch']}. Times are medians of "
        f"{settings.rounds} rounds in which all rows of a table take turns."
    )
    warning = ["Quick: tiny sizes, to see that it runs; the numbers mean nothing.\n"] if settings.quick else []
    return "\n".join(["# Speed\n", f"{said}\n", *warning, *(table.markdown() for table in tables)])


def write(folder: Path, settings: Settings, tables: Sequence[Table]) -> None:
    """``speed.md`` and ``speed.json``, with full precision in the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "speed.md").write_text(markdown(settings, tables))
    how = {"threads": settings.threads, "rounds": settings.rounds, "quick": settings.quick}
    told = {"machine": machine(), "settings": how, "tables": [dataclasses.asdict(table) for table in tables]}
    (folder / "speed.json").write_text(json.dumps(told, indent=2) + "\n")
