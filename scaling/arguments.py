"""What the verbs of the command line are declared with."""

from collections.abc import Callable
from pathlib import Path

import click

PATH = click.Path(path_type=Path, dir_okay=False)


def options(*several: Callable) -> Callable:
    """Several options at once, in the order given."""

    def decorate(function: Callable) -> Callable:
        for option in reversed(several):
            function = option(function)
        return function

    return decorate
