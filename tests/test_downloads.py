"""Fetching D4RL's files from a real server that cuts, changes, refuses and knows ranges; and D4RL's own tables."""

import hashlib
import http.server
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest

from scaling import downloads
from scaling.datasets import d4rl
from scaling.downloads import d4rl_file, fetch
from scaling.errors import UserError
from scaling.scores import D4RL
from scaling.spec import DataSpec

from conftest import make_columns, write_hdf5


class Server(http.server.ThreadingHTTPServer):
    """One file, whatever the path; ``content``, ``etag``, ``cut``, ``status`` and ``delay`` say how it is served."""

    content, etag, cut, status, delay = b"", '"one"', 0, 200, 0.0
    asked: list[str | None]
    sent: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.hdf5"


class Answer(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted, content = self.headers.get("Range"), self.server.content
        self.server.asked.append(wanted)
        time.sleep(self.server.delay)
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        first = int(wanted[6:-1]) if wanted and self.headers.get("If-Range") == self.server.etag else 0
        if first and first >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(content) - first))
        if self.server.etag:
            self.send_header("ETag", self.server.etag)
        self.end_headers()
        self.server.sent += self.wfile.write(content[first : self.server.cut or None])

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Answer) as server:
        server.asked, server.sent, server.content = [], 0, bytes(range(256)) * 4000
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def cut_once(server: Server, path: Path, bytes_sent: int = 300_000) -> None:
    server.cut = bytes_sent
    with pytest.raises(UserError, match=re.escape(f"{bytes_sent:,} bytes are kept; the same command goes on")):
        fetch(server.url, path)
    server.cut = 0


def files_of(path: Path) -> set[str]:
    return {file.suffix for file in path.parent.iterdir() if file.suffix != ".lock"}


def test_a_file_is_fetched_once_and_its_sha256_lies_beside_it(tmp_path, server):
    path = tmp_path / "deep" / "x.hdf5"
    assert fetch(server.url, path).read_bytes() == server.content
    assert fetch(server.url, path) == path
    assert len(server.asked) == 1
    said = path.with_suffix(".sha256").read_text()
    assert said == f"{hashlib.sha256(server.content).hexdigest()}  x.hdf5\n"
    assert files_of(path) == {".hdf5", ".sha256"}


def test_a_download_goes_on_where_the_connection_was_cut(tmp_path, server):
    path = tmp_path / "x.hdf5"
    cut_once(server, path)
    assert not path.exists()
    assert fetch(server.url, path).read_bytes() == server.content
    assert server.asked == [None, "bytes=300000-"]
    assert server.sent == len(server.content)


def test_a_file_that_changed_on_the_server_meanwhile_is_fetched_from_its_beginning(tmp_path, server):
    path = tmp_path / "x.hdf5"
    cut_once(server, path)
    server.content, server.etag = b"other" * 200_000, '"two"'
    assert fetch(server.url, path).read_bytes() == server.content


def test_without_a_tag_nothing_is_joined(tmp_path, server):
    path = tmp_path / "x.hdf5"
    server.etag = ""
    cut_once(server, path)
    server.content = b"other" * 200_000
    assert fetch(server.url, path).read_bytes() == server.content


def test_a_part_that_was_whole_when_its_fetcher_was_killed_is_taken(tmp_path, server):
    path = tmp_path / "x.hdf5"
    cut_once(server, path)
    path.with_suffix(".part").write_bytes(server.content)
    assert fetch(server.url, path).read_bytes() == server.content
    assert server.asked == [None, f"bytes={len(server.content)}-"]


def test_a_part_longer_than_the_file_is_thrown_away(tmp_path, server):
    path = tmp_path / "x.hdf5"
    cut_once(server, path)
    path.with_suffix(".part").write_bytes(server.content + b"more")
    with pytest.raises(UserError, match="416"):
        fetch(server.url, path)
    assert fetch(server.url, path).read_bytes() == server.content


def test_a_missing_file_leaves_nothing(tmp_path, server):
    server.status = 404
    with pytest.raises(UserError, match=r"/file.hdf5: cannot be fetched \(HTTP Error 404.*nothing was kept") as caught:
        fetch(server.url, tmp_path / "x.hdf5")
    assert "\n" not in str(caught.value)
    assert files_of(tmp_path / "x.hdf5") == set()


def test_a_part_survives_a_server_that_is_out_of_order(tmp_path, server):
    path = tmp_path / "x.hdf5"
    cut_once(server, path)
    server.status = 503
    with pytest.raises(UserError, match=r"503.*300,000 bytes are kept"):
        fetch(server.url, path)
    server.status = 200
    assert fetch(server.url, path).read_bytes() == server.content
    assert server.asked[-1] == "bytes=300000-"


def test_a_server_out_of_reach_is_named(tmp_path):
    with Server(("127.0.0.1", 0), Answer) as server:
        url = server.url
    with pytest.raises(UserError, match=rf"{re.escape(url)}: cannot be fetched \(.*refused.*nothing was kept, or put"):
        fetch(url, tmp_path / "x.hdf5")


def test_a_server_that_falls_silent_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
    silent = socket.create_server(("127.0.0.1", 0))  # accepts, and never answers
    with silent, pytest.raises(UserError, match=r"cannot be fetched .*timed out"):
        fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/x", tmp_path / "x.hdf5")


def test_a_folder_that_cannot_be_written_is_named(tmp_path, server):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="SCALING_CACHE"):
        fetch(server.url, tmp_path / "file" / "x.hdf5")


def test_two_that_want_one_file_at_the_same_time_fetch_it_once(tmp_path, server):
    path, server.delay = tmp_path / "x.hdf5", 0.3
    threads = [threading.Thread(target=fetch, args=(server.url, path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == server.content
    assert len(server.asked) == 1


def test_a_dataset_of_d4rl_is_fetched_by_its_name_and_read(tmp_path, server, monkeypatch):
    monkeypatch.setenv("SCALING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "d4rl_infos", lambda: {"DATASET_URLS": {"hopper-medium-v2": server.url}})
    server.content = write_hdf5(tmp_path / "there.hdf5", make_columns([5, 6, 7])).read_bytes()
    store = d4rl.open(DataSpec(path="d4rl:hopper-medium-v2"), tmp_path)
    assert store.lengths.tolist() == [5, 6, 7]
    with h5py.File(tmp_path / "cache" / "downloads" / "hopper-medium-v2.hdf5") as file:
        assert len(file["rewards"]) == 18


def test_a_name_that_d4rl_does_not_know_is_answered_with_one_like_it(monkeypatch):
    monkeypatch.setattr(downloads, "d4rl_infos", lambda: {"DATASET_URLS": {"hopper-medium-v2": "http://x"}})
    with pytest.raises(UserError, match=r"no dataset 'hoper-medium-v2'.*did you mean 'hopper-medium-v2'"):
        d4rl_file("hoper-medium-v2")


def test_without_the_package_one_is_told_where_the_list_of_files_is(monkeypatch):
    monkeypatch.setattr(downloads, "d4rl_infos", lambda: None)
    with pytest.raises(UserError, match="pip install --no-deps d4rl"):
        d4rl_file("hopper-medium-v2")


@pytest.fixture
def infos() -> dict:
    found = downloads.d4rl_infos()
    if found is None:
        pytest.skip("the package d4rl is not installed: pip install --no-deps d4rl")
    return found


def test_the_reference_returns_are_those_of_d4rl(infos):
    for robot, (low, high) in D4RL.items():
        for level in ("random", "medium", "medium-replay", "medium-expert", "expert"):
            assert infos["REF_MIN_SCORE"][f"{robot}-{level}-v2"] == low
            assert infos["REF_MAX_SCORE"][f"{robot}-{level}-v2"] == high


def test_d4rl_has_an_address_for_every_level_of_every_robot(infos):
    urls = infos["DATASET_URLS"]
    for robot in D4RL:
        for level in ("random", "medium", "medium-replay", "medium-expert", "expert"):
            assert re.fullmatch(r"https?://\S+\.hdf5", urls[f"{robot}-{level}-v2"])
