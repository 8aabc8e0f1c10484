"""Sends a job to the head of a Ray cluster, follows its log and ends as its driver ended."""

import asyncio
import http.client
import json
import logging
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cluster.ray.job import Job, Refused, request, said_exit_code

ANSWERS_WITHIN = 5.0
"""Seconds after which an address counts as dead."""
SILENT_FOR = 60.0
"""Seconds of lost connection after which the job is left to itself."""
INTERRUPTED = 75
"""Exit code of work that goes on when the same command is given again."""
LEFT = 130
"""Exit code of a submitter that was told to leave before the job had ended."""


class Lost(Exception):
    """The head no longer answers; the message is one line."""


def submit(job: Job) -> int:
    """Run the job to its end and return the exit code of its driver."""
    quiet()
    client = connect(job.address)
    try:
        with refusals(job.address):
            client.submit_job(**request(job))
    except KeyboardInterrupt:
        stop(client, job)
        say(f"{job.name} was stopped before it had begun")
        return INTERRUPTED
    say(f"{job.name} runs at {job.address}; Ctrl-C stops it")
    return asyncio.run(Following(client, job).to_the_end())


def connect(address: str) -> JobSubmissionClient:
    """A client of a head that answers and accepts our token."""
    probe(address)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # Ray would take them instead of the address given
        os.environ.pop(name, None)
    with refusals(address):
        return JobSubmissionClient(address)


def probe(address: str) -> None:
    """Refuse an address at which no dashboard of Ray answers in time; Ray's own client waits without limit."""
    url = address.rstrip("/") + "/api/version"
    try:
        with urllib.request.urlopen(url, timeout=ANSWERS_WITHIN) as answer:
            known = "ray_version" in json.load(answer)
    except urllib.error.HTTPError as error:
        error.close()
        known = error.code in (401, 403)  # who we are is the client's question
    except (http.client.HTTPException, ValueError):
        known = False
    except OSError as error:
        raise Refused(
            f"nothing answers at {address} within {ANSWERS_WITHIN:.0f} s ({getattr(error, 'reason', error)}); "
            "does the head run with ray[default], and is its port reachable from here?"
        ) from error
    if not known:
        raise Refused(f"what answers at {address} is not a dashboard of Ray")


@contextmanager
def refusals(address: str) -> Iterator[None]:
    """Turn what the client raises into one line."""
    try:
        yield
    except AuthenticationError as error:
        raise Refused(f"{address} refuses us: {token_hint(error)}") from error
    except (OSError, RuntimeError, ValueError, requests.RequestException) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise Refused(f"{address} did not take the job: {lines[0]}") from error


def token_hint(error: AuthenticationError) -> str:
    """What is wrong with the token, and what would be right."""
    said = error.message.splitlines()[0].rstrip(".")
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return "it asks for a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file that holds it"
    if "Invalid" in said:
        return "the token is not the cluster's; point RAY_AUTH_TOKEN_PATH to the file that holds it"
    return said


class Following:
    """A job whose log is shown here until it ends, and which is stopped from here."""

    def __init__(self, client: JobSubmissionClient, job: Job) -> None:
        self.client = client
        self.job = job
        self.shown = 0
        """Characters of the log that were printed."""
        self.end = ""
        """The last characters of the log."""
        self.signals = 0

    async def to_the_end(self) -> int:
        """The driver's exit code. A first signal stops the job, a second one leaves it."""
        follow = asyncio.ensure_future(self.follow())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.on_signal, follow)
        try:
            return exit_code(self.job, await follow, self.end)
        except asyncio.CancelledError:
            say(f"left {self.job.name} while it stops")
            return LEFT
        except Lost as error:
            say(str(error))
            return 1

    def on_signal(self, follow: "asyncio.Future[JobDetails]") -> None:
        """Stop the job, or leave it where that was asked for before."""
        self.signals += 1
        if self.signals > 1:
            follow.cancel()
            return
        say(f"stopping {self.job.name}; it has {self.job.grace} s to save its runs, a second Ctrl-C leaves it")
        threading.Thread(target=stop, args=(self.client, self.job), daemon=True).start()

    async def follow(self) -> JobDetails:
        """What became of the job, after its whole log was printed. Goes on where a connection broke."""
        heard = time.monotonic()
        while True:
            try:
                await self.show_log()
                details = await asyncio.to_thread(self.client.get_job_info, self.job.name)
                if details.status.is_terminal():
                    return details
                heard = time.monotonic()
            except AuthenticationError as error:
                raise Lost(f"{self.job.address} refuses us: {token_hint(error)}") from error
            except (OSError, RuntimeError, aiohttp.ClientError, requests.RequestException) as error:
                if time.monotonic() - heard > SILENT_FOR:
                    raise Lost(f"lost {self.job.name}: {self.job.address} no longer answers") from error
            await asyncio.sleep(1)

    async def show_log(self) -> None:
        """Print what of the log was not yet printed, until the connection ends. It begins at the log's begin."""
        at = 0
        async for text in self.client.tail_job_logs(self.job.name):
            fresh = text[max(0, self.shown - at) :]
            at += len(text)
            self.shown = max(self.shown, at)
            self.end = (self.end + fresh)[-1000:]
            print(fresh, end="", flush=True)


def exit_code(job: Job, details: JobDetails, log: str) -> int:
    """The driver's own exit code, from Ray or from the end of the log; Ray itself only says failed or stopped."""
    if details.driver_exit_code is not None:
        return int(details.driver_exit_code)
    said = said_exit_code(job, log)
    if said is not None:
        return said
    if details.status == JobStatus.STOPPED:
        say(f"{job.name} was stopped, and its driver did not live to say how it ended")
        return INTERRUPTED
    lines = (details.message or "no reason given").strip().splitlines()
    say(f"{job.name} failed before its driver ended: {lines[-1]}")
    return 1


def stop(client: JobSubmissionClient, job: Job) -> None:
    """Ask the cluster to stop the job."""
    try:
        client.stop_job(job.name)
    except (OSError, RuntimeError, AuthenticationError, requests.RequestException) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        say(f"could not stop {job.name}: {lines[0]}")


def quiet() -> None:
    """Keep Ray's client from telling how it uploads and connects."""
    for name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)


def say(line: str) -> None:
    """Print a line that is not the job's."""
    print(line, file=sys.stderr, flush=True)
