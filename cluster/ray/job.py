"""A command as a job of a Ray cluster: what is sent, as a value and as text."""

import json
import posixpath
import re
import secrets
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit


class Refused(Exception):
    """What was asked for cannot be done; the message is one line and says what would be right."""


def new_name() -> str:
    """A name that no other job of the cluster has."""
    return f"scaling-{secrets.token_hex(6)}"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command line that a Ray cluster runs on its head."""

    address: str
    """URL of the head's dashboard."""
    command: tuple[str, ...]
    working_dir: str | None = None
    """Folder that is uploaded and in which the command runs; None uploads nothing."""
    env: tuple[tuple[str, str], ...] = ()
    """Names and values that the driver and every run see."""
    grace: int = 300
    """Seconds between the signal that stops the driver and the one that kills it. Ray gives three unless told."""
    name: str = field(default_factory=new_name)

    def __post_init__(self) -> None:
        check_address(self.address)
        check_command(self.command)
        if self.working_dir is not None and not Path(self.working_dir).is_dir():
            raise Refused(f"--working-dir {self.working_dir}: no such folder")
        for name, _ in self.env:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise Refused(f"--env {name!r} is no name of a variable; write --env NAME=VALUE")
        if self.grace < 1:
            raise Refused(f"--grace must be at least one second: {self.grace}")


def check_address(address: str) -> None:
    """Refuse what is no URL of a dashboard."""
    try:
        parts = urlsplit(address)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        known = False
    if not known:
        raise Refused(f"--address {address!r} is no URL of a dashboard; write http://HOST:8265")


def check_command(command: tuple[str, ...]) -> None:
    """Refuse no command, and a sweep whose rows would be deleted with the job's folder."""
    if not command:
        raise Refused("no command; write it after --, as in -- scaling run sweeps/smoke.yaml --root s3://bucket/runs")
    if posixpath.basename(command[0]) != "scaling" or command[1:2] != ("run",) or "--help" in command:
        return
    root = option(command, "--root")
    if root is None or not ("://" in root or posixpath.isabs(root)):
        told = "no --root" if root is None else f"--root {root}"
        raise Refused(
            f"{told}: the folder in which a job runs is deleted after it; "
            "name s3://bucket/prefix or an absolute folder that all nodes share"
        )


def option(command: tuple[str, ...], name: str) -> str | None:
    """The last value given to an option of a command line."""
    found = None
    for one, following in zip(command, (*command[1:], None), strict=True):
        if one == name:
            found = following
        elif one.startswith(f"{name}="):
            found = one.removeprefix(f"{name}=")
    return found


def entrypoint(job: Job) -> str:
    """The shell's line that runs the command and then says its exit code.

    Ray forgets the exit code of a driver that it stops, so the log has to hold it. The trap keeps the shell alive
    when Ray signals it together with the driver; the driver itself sees the signal as it was sent.
    """
    said = f'echo "{job.name}: exit code $code"'
    return f"trap : TERM INT; {shlex.join(job.command)}; code=$?; {said}; exit $code"


def said_exit_code(job: Job, log: str) -> int | None:
    """The exit code that the end of the log tells, None where it does not."""
    found = re.findall(rf"{re.escape(job.name)}: exit code (\d+)\n", log)
    return int(found[-1]) if found else None


def request(job: Job) -> dict[str, object]:
    """The arguments of ``JobSubmissionClient.submit_job``."""
    variables = {"SCALING_ADDRESS": "auto", "RAY_JOB_STOP_WAIT_TIME_S": str(job.grace), **dict(job.env)}
    runtime_env: dict[str, object] = {"env_vars": variables}
    if job.working_dir is not None:
        runtime_env["working_dir"] = job.working_dir
    return {"submission_id": job.name, "entrypoint": entrypoint(job), "runtime_env": runtime_env}


def render(job: Job) -> str:
    """The job as JSON, with the address to which it goes."""
    return json.dumps({"address": job.address, **request(job)}, indent=2) + "\n"
