"""Runs a command on a Ray cluster as one of its jobs.

python -m cluster.ray submit --address http://HEAD:8265 --working-dir . -- scaling run sweeps/x.yaml --root s3://b/runs

Shows the job's log, passes Ctrl-C on, and exits with the exit code of the command; 2 where nothing was submitted.
"""

import argparse
import importlib.util
import sys
from typing import NoReturn

from cluster.ray.job import Job, Refused, render

NEEDED = ("ray", "aiohttp", "pydantic", "requests")
"""What Ray's job client imports; without one of them it is there and cannot be used."""


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise Refused(message)


def main(arguments: list[str] | None = None) -> int:
    """Submit, or say in one line why not."""
    try:
        job, dry = parse(sys.argv[1:] if arguments is None else arguments)
        if dry:
            print(render(job), end="")
            return 0
        check_packages()
        from cluster.ray.submit import submit  # needs ray[default], which a dry run does not

        return submit(job)
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def parse(arguments: list[str]) -> tuple[Job, bool]:
    """The job that the command line describes, and whether it is only to be shown."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    own, command = arguments[:at], tuple(arguments[at + 1 :])
    parser = Parser(prog="python -m cluster.ray", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    verbs = parser.add_subparsers(required=True, metavar="submit")
    verb = verbs.add_parser("submit", help="run a command as a job", allow_abbrev=False)
    verb.add_argument("--address", required=True, metavar="URL", help="the head's dashboard, http://HOST:8265")
    verb.add_argument("--working-dir", metavar="FOLDER", help="folder to upload and to run in")
    verb.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="variable for driver and runs")
    verb.add_argument("--grace", type=int, default=Job.grace, metavar="SECONDS", help="time to save after Ctrl-C")
    verb.add_argument("--dry-run", action="store_true", help="print what would be sent")
    options = parser.parse_args(own)
    job = Job(
        address=options.address,
        command=command,
        working_dir=options.working_dir,
        env=tuple(map(variable, options.env)),
        grace=options.grace,
    )
    return job, options.dry_run


def variable(text: str) -> tuple[str, str]:
    """Name and value."""
    name, equals, value = text.partition("=")
    if not equals:
        raise Refused(f"--env {text!r} has no value; write --env NAME=VALUE")
    return name, value


def check_packages() -> None:
    """Refuse an environment in which Ray's job client cannot work."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise Refused(f"no package {', '.join(missing)} here; pip install 'ray[default]'")


if __name__ == "__main__":
    sys.exit(main())
