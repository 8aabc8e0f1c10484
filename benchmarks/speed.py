"""Where a training step stands: against its rivals and its floor, and how it grows; one document of tables.

    python -m benchmarks.speed [--threads 2] [--rounds 5] [--out FOLDER] [--quick] [--mamba-ssm FOLDER]

Prints the document; with ``--out`` also writes it as ``speed.md`` and ``speed.json``. Rows of a table are measured in
turns in one process, so that their ratios hold on a machine that drifts. Rivals whose packages are not installed
(``pip install .[bench]``) are named with what they need.

A section is a function from the settings to tables; a new one joins :data:`SECTIONS`.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import document, growth, populations, rivals
from benchmarks.document import Settings, Table

Section = Callable[[Settings], list[Table]]

SECTIONS: tuple[Section, ...] = (rivals.section, growth.section, populations.section)


def main(arguments: list[str]) -> None:
    """Measure everything, print it and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for speed.md and speed.json")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--mamba-ssm", type=Path, help="unpacked source of mamba-ssm, where it is not installed")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    settings = Settings(threads=given.threads, rounds=given.rounds, quick=given.quick, mamba_ssm=given.mamba_ssm)
    tables = [table for section in SECTIONS for table in section(settings)]
    print(document.markdown(settings, tables))
    if given.out:
        document.write(given.out, settings, tables)


if __name__ == "__main__":
    main(sys.argv[1:])
