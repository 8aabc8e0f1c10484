"""The command line: one verb per step, each reading what the verb before it left on disk."""

import importlib
from typing import Any

import click

from scaling import __version__, garbage
from scaling.errors import UserError
from scaling.exit_codes import INTERRUPTED, USER_ERROR

VERBS = {
    "plan": "plan_verb",
    "profile": "profile_verb",
    **dict.fromkeys(("run", "status", "retry", "collect"), "run_verbs"),
    **dict.fromkeys(("fit", "select"), "fit_verbs"),
    **dict.fromkeys(("answer", "next", "power", "report"), "decision_verbs"),
    "returns": "return_verbs",
    "data": "data_verbs",
}
"""The verbs in the order of a study, and the module of each; imported when it is called, as some take seconds."""


class Verbs(click.Group):
    """Turns a user's mistake into one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            click.echo(f"error: {error}", err=True)
        except OSError as error:
            click.echo(f"error: cannot read or write {error.filename or 'a file'}: {error.strerror or error}", err=True)
        except ModuleNotFoundError as error:
            click.echo(
                f"error: {error.name} is not installed; this verb needs the extra: pip install '.[train]'", err=True
            )
        except KeyboardInterrupt:
            click.echo("interrupted; the same command goes on", err=True)
            ctx.exit(INTERRUPTED)
        return ctx.exit(USER_ERROR)


class Door(Verbs):
    """All verbs, each found when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all verbs."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A verb by its name."""
        if cmd_name not in VERBS:
            return None
        with garbage.paused():
            module = importlib.import_module(f"scaling.{VERBS[cmd_name]}")
        verb: click.Command = getattr(module, f"{cmd_name}_verb")
        return verb


@click.group(cls=Door, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="scaling")
def main() -> None:
    """More data or a bigger model? Scaling-law studies for offline reinforcement learning.

    \b
    A sweep is a YAML file that says which runs answer a question. The way of the data:
      sweep --plan--> runs and their cost --run--> a row per run --collect--> one table
      table --select--> laws that survive --answer--> a verdict --report--> one HTML page
    A table may also be any CSV or Parquet file of your own: --column N=params --column D=tokens.
    """  # noqa: D301 - click wants the character itself
    garbage.leave_to_exit()


if __name__ == "__main__":
    main()
