"""The command line: one verb per step, each reading what the verb before it left on disk."""

from typing import Any

import click

from scaling import __version__
from scaling.data_verbs import data_group
from scaling.decision_verbs import DECISION_VERBS
from scaling.errors import UserError
from scaling.fit_verbs import FIT_VERBS
from scaling.plan_verb import plan_verb
from scaling.return_verbs import RETURN_VERBS
from scaling.run_verbs import INTERRUPTED, RUN_VERBS

USER_ERROR = 2
"""Exit code for input that cannot be used."""


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


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="scaling")
def main() -> None:
    """More data or a bigger model? Scaling-law studies for offline reinforcement learning.

    \b
    A sweep is a YAML file that says which runs answer a question. The way of the data:
      sweep --plan--> runs and their cost --run--> a row per run --collect--> one table
      table --select--> laws that survive --answer--> a verdict --report--> one HTML page
    A table may also be any CSV or Parquet file of your own: --column N=params --column D=tokens.
    """  # noqa: D301 - click wants the character itself


for verb in (plan_verb, *RUN_VERBS, *FIT_VERBS, *DECISION_VERBS, *RETURN_VERBS, data_group):
    main.add_command(verb)


if __name__ == "__main__":
    main()
