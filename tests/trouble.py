"""A proxy before an HTTP server that counts requests, answers some with an error, and delays others."""

import http.client
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

ERRORS = ((500, "InternalError"), (503, "SlowDown"))
BODY = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>trouble</Message></Error>'

OWN = {"transfer-encoding", "content-length", "expect", "connection"}
"""Headers of a connection, not of what goes over it."""


class Trouble(ThreadingHTTPServer):
    """Passes requests on to a port of this machine."""

    daemon_threads = True

    def __init__(self, port: int, seed: int, failing: float, delayed: float) -> None:
        """Listen at a free port.

        Args:
            port: where the server listens.
            seed: of what happens to requests, in the order in which they come.
            failing: share of requests that are answered with an error; the server never sees them.
            delayed: share of the others that wait, for up to a second.

        """
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port, self.failing, self.delayed = port, failing, delayed
        self.generator, self.lock = np.random.default_rng(seed), threading.Lock()
        self.seen: Counter[str] = Counter()
        self.failed = 0
        self.refused = ""
        """Requests whose path holds this are all answered with an error."""

    def fate(self, method: str, path: str) -> tuple[tuple[int, str] | None, float]:
        """What happens to the next request: its error if it gets one, and the seconds for which it waits."""
        with self.lock:
            chance, which, late, wait = self.generator.random(4)
            fails = chance < self.failing or bool(self.refused and self.refused in path)
            self.seen["LIST" if "list-type=" in path else method] += 1
            self.failed += fails
        return ERRORS[int(2 * which)] if fails else None, wait if late < self.delayed else 0.0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Trouble

    def _pass_on(self) -> None:
        body = self._body()
        error, wait = self.server.fate(self.command, self.path)
        time.sleep(wait)
        if error:
            self._answer(error[0], {}, BODY.format(error[1]).encode())
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.port)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in OWN}
        upstream.request(self.command, self.path, body, headers)
        with upstream.getresponse() as answer:
            self._answer(answer.status, dict(answer.getheaders()), answer.read())
        upstream.close()

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # what follows the last part
            continue
        return b"".join(parts)

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            if name != "Connection":
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on  # noqa: N815 - names that the base class calls

    def log_message(self, *told: object) -> None:
        """Nothing."""


@contextmanager
def trouble(port: int, seed: int = 0, failing: float = 0.0, delayed: float = 0.0) -> Iterator[Trouble]:
    """A proxy that runs until the context ends."""
    with Trouble(port, seed, failing, delayed) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        yield proxy
        proxy.shutdown()
        thread.join()
