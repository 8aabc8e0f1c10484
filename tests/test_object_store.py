"""Rows in a bucket: a real client of S3 before a server that answers as S3 does, on a good day and on a bad one."""

import logging
import os
import re
import socket
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from test_sweep import scaling, sweep_file
from trouble import trouble

from scaling import claims, results
from scaling.claims import Claim
from scaling.errors import UserError
from scaling.root import Folder, Root, check_writable, now, open_root

from conftest import make_columns, write_hdf5

AXES = "{train.learning_rate: [1.0e-3, 2.0e-3, 3.0e-3, 1.0e+30]}"
"""Three runs that end and one that diverges."""


@pytest.fixture(scope="module", autouse=True)
def credentials(tmp_path_factory) -> Iterator[None]:
    """Of nobody, and none of this machine's own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        yield


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Where an object store listens."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    log = logging.getLogger("werkzeug")
    level = log.level
    log.setLevel(logging.CRITICAL)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()
    log.setLevel(level)


def ask(port: int, path: str, method: str, body: bytes = b"") -> bytes:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/{path}", data=body, method=method, headers={"Content-Type": "text/plain"}
    )
    with urllib.request.urlopen(request) as answer:
        return answer.read()


def uri(bucket: str, port: int) -> str:
    return f"s3://{bucket}/some/prefix?scheme=http&endpoint_override=127.0.0.1:{port}"


@pytest.fixture
def bucket(port) -> str:
    name = f"bucket-{uuid.uuid4().hex}"
    ask(port, name, "PUT")
    return name


@pytest.fixture
def store(bucket, port) -> Root:
    return open_root(uri(bucket, port))


@pytest.fixture(params=["folder", "bucket"])
def root(request, tmp_path) -> Root:
    return open_root(tmp_path / "some/root") if request.param == "folder" else request.getfixturevalue("store")


def test_a_root_gives_back_what_was_written_and_nothing_where_nothing_was(root):
    assert root.read("a/row") is None
    assert root.files() == {}
    assert root.files("a") == {}
    root.remove("a/row")
    root.write("a/row", b"one")
    root.write("a/row", b"another")
    root.write("a/empty", b"")
    root.write("alone", bytes(range(256)))
    assert root.read("a/row") == b"another"
    assert root.read("a/empty") == b""
    assert root.read("alone") == bytes(range(256))
    assert root.files().keys() == {"a/row", "a/empty", "alone"}
    assert root.files("a").keys() == {"a/row", "a/empty"}
    for path in ("a/row", "a/empty"):
        root.remove(path)
    assert root.read("a/row") is None
    assert root.files().keys() == {"alone"}


def test_a_root_dates_its_files_by_its_own_clock(root):
    root.write("early", b"")
    begin = root.files()["early"]
    assert abs(begin - time.time()) < 60
    time.sleep(1.1)  # stores count in whole seconds
    root.write("late", b"")
    assert root.files()["late"] > begin
    assert root.files()["early"] == begin
    root.write("early", b"")
    assert root.files()["early"] > begin
    assert now(root, "folder") > begin
    assert root.files().keys() == {"early", "late"}


def test_hidden_files_and_those_of_neighbours_are_never_listed(root):
    for path in (".row", "run/.row.123", ".cache/row", "run/row", "running/row"):
        root.write(path, b"x")
    assert root.files().keys() == {"run/row", "running/row"}
    assert root.files("run").keys() == {"run/row"}


def test_a_name_that_looks_compressed_is_stored_as_it_is(root):
    root.write("row.gz", b"plain")
    assert root.read("row.gz") == b"plain"


def test_readers_see_one_whole_content_or_the_other(root):
    contents = {bytes([letter]) * 200_000 for letter in b"ab"}
    seen: set[bytes | None] = set()
    root.write("row", b"a" * 200_000)

    def write() -> None:
        for _ in range(10):
            for content in contents:
                root.write("row", content)

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        seen.add(root.read("row"))
    writer.join()
    assert seen <= contents


def test_a_root_opens_again_from_its_uri(root):
    root.write("row", b"x")
    assert open_root(root.uri).read("row") == b"x"


def test_a_folder_may_be_named_by_a_uri(tmp_path):
    root = open_root(f"file://{tmp_path}/some")
    assert isinstance(root, Folder)
    root.write("a/row", b"x")
    assert (tmp_path / "some/a/row").read_bytes() == b"x"


def test_small_objects_are_put_in_one_request_and_read_in_two(bucket, port):
    with trouble(port) as proxy:
        root = open_root(uri(bucket, proxy.server_port))
        root.write("row", b"x" * 100_000)
        assert dict(proxy.seen) == {"PUT": 1}
        assert root.read("row") == b"x" * 100_000
        assert dict(proxy.seen) == {"PUT": 1, "HEAD": 1, "GET": 1}
        assert root.files().keys() == {"row"}
        assert proxy.seen["LIST"] == 1


def test_an_object_of_which_a_part_is_lost_does_not_appear(bucket, port, monkeypatch):
    monkeypatch.setattr("scaling.root.PATIENCE", 0.0)
    content = os.urandom(1) * 25_000_000
    with trouble(port) as proxy:
        root = open_root(uri(bucket, proxy.server_port))
        for part in ("partNumber=1&", "partNumber=2&", "partNumber=3&"):
            proxy.refused = part
            with pytest.raises(OSError, match="part"):
                root.write("checkpoint", content)
            assert root.files() == {}
            assert root.read("checkpoint") is None
        proxy.refused = ""
        root.write("checkpoint", content)
        assert root.read("checkpoint") == content


def test_every_request_of_a_root_outlives_a_time_of_trouble(bucket, port):
    with trouble(port, seed=1, failing=0.25) as proxy:
        root = open_root(uri(bucket, proxy.server_port))
        for number in range(10):
            root.write(f"run/{number}", b"%d" % number)
        assert [root.read(f"run/{number}") for number in range(10)] == [b"%d" % number for number in range(10)]
        for number in range(0, 10, 2):
            root.remove(f"run/{number}")
        assert root.files().keys() == {f"run/{number}" for number in range(1, 10, 2)}
        assert proxy.failed > 5


@pytest.fixture
def hasty(monkeypatch) -> Callable[[float], None]:
    """Claims that void within seconds; sets how often they are renewed."""
    monkeypatch.setattr(claims, "STALE", 3.0)
    monkeypatch.setattr(claims, "BEAT", 0.0)
    return lambda beat: monkeypatch.setattr(claims, "BEAT", beat)


def test_a_run_that_is_claimed_is_refused_to_others_until_it_is_left(root, hasty):
    with Claim(root, "run") as first:
        assert first.take()
        time.sleep(2 * claims.STALE)  # renewed all the while
        with Claim(root, "run") as second:
            assert not second.take()
        with Claim(root, "other") as other:
            assert other.take()
        assert not first.lost
        assert root.files().keys() == {first.path}
    assert root.files() == {}
    with Claim(root, "run") as third:
        assert third.take()


def test_a_claim_that_is_not_renewed_is_taken_over_and_its_holder_learns_of_it(root, hasty):
    hasty(1e9)
    with Claim(root, "run") as first, Claim(root, "run") as second:
        assert first.take()
        assert not second.take()
        time.sleep(claims.STALE + 1.1)
        assert second.take()
        assert root.files().keys() == {second.path}
        hasty(0.0)
        deadline = time.monotonic() + 30
        while not first.lost and time.monotonic() < deadline:
            time.sleep(0.1)
        assert first.lost
        assert not second.lost


def test_two_that_come_at_once_never_both_hold_a_run(root):
    barrier, held = threading.Barrier(2), []

    def come() -> None:
        for number in range(12):
            with Claim(root, f"run{number}") as claim:
                barrier.wait()
                taken = claim.take()
                held.append((number, taken))
                barrier.wait()

    threads = [threading.Thread(target=come) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 24
    holders = [number for number, taken in held if taken]
    assert len(holders) == len(set(holders))
    assert root.files() == {}


def test_a_claim_may_be_taken_again_where_the_answer_came_too_late(root):
    with Claim(root, "run") as claim:
        assert claim.take()
        assert claim.take()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With a sweep of four runs that was done with a folder as its root."""
    folder = tmp_path_factory.mktemp("own")
    write_hdf5(folder / "mine.hdf5", make_columns([20] * 30))
    scaling("run", sweep_file(folder, AXES, amount=40), "--address", "none", cwd=folder, code=1)
    return folder


def rows_of(folder: Path, where: str) -> list[dict]:
    """What of the rows should be the same again."""
    scaling("collect", "own.yaml", "--root", where, "--out", "own.parquet", cwd=folder)
    names = [column.name for column in results.COLUMNS if column.repeatable]
    return results.read_table(folder / "own.parquet").select(names).to_pylist()


def files_of(where: str) -> set[str]:
    return {path.rpartition("/")[2] for path in open_root(where).files()}


def test_a_sweep_in_a_bucket_has_the_rows_of_one_in_a_folder(folder, bucket, port):
    where = uri(bucket, port)
    said = scaling("run", "own.yaml", "--root", where, "--cpus", 2, cwd=folder, code=1).stdout
    assert "own: 3 of 4 runs done" in said
    assert "diverged" in said
    assert rows_of(folder, where) == rows_of(folder, "runs")
    assert files_of(where) == {"row.parquet", "own.json"}
    said = scaling("status", "own.yaml", "--root", where, cwd=folder).stdout
    assert "own: 3 done, 0 running, 0 stale, 1 failed, 0 waiting, of 4" in said
    assert "1 failed runs forgotten" in scaling("retry", "own.yaml", "--root", where, cwd=folder).stdout
    said = scaling("status", "own.yaml", "--root", where, cwd=folder).stdout
    assert "own: 3 done, 0 running, 0 stale, 0 failed, 1 waiting, of 4" in said
    scaling("run", "own.yaml", "--root", where, "--address", "none", cwd=folder, code=1)
    assert rows_of(folder, where) == rows_of(folder, "runs")


@pytest.mark.parametrize("address", ["local", "none"])
def test_a_sweep_whose_store_has_trouble_has_the_same_rows(folder, bucket, port, address):
    with trouble(port, seed=2, failing=0.15, delayed=0.2) as proxy:
        where = uri(bucket, proxy.server_port)
        arguments = ("own.yaml", "--root", where, "--address", address, "--checkpoint-every", 0.1)
        said = scaling("run", *arguments, cwd=folder, code=1).stdout
        assert "own: 3 of 4 runs done" in said
        assert rows_of(folder, where) == rows_of(folder, "runs")
        assert proxy.failed > 5
    assert files_of(uri(bucket, port)) == {"row.parquet", "own.json"}


def refused(folder: Path, verb: str, where: str) -> str:
    before = sorted(folder.iterdir())
    done = scaling(verb, "own.yaml", "--root", where, cwd=folder, code=2)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert sorted(folder.iterdir()) == before
    return done.stderr


@pytest.mark.parametrize("verb", ["run", "status", "retry"])
def test_a_bucket_that_does_not_exist_is_named(folder, port, verb):
    assert "there is no such bucket" in refused(folder, verb, uri("no-such-bucket", port))


def test_nothing_to_collect_from_a_bucket_says_how_to_start(folder, store):
    assert "start them with 'scaling run" in refused(folder, "collect", store.uri)


@pytest.mark.parametrize("verb", ["run", "status", "collect"])
def test_an_endpoint_where_nothing_listens_is_given_up_within_seconds(folder, verb):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    said = refused(folder, verb, uri("some-bucket", free))
    assert f"cannot read or write s3://some-bucket/some/prefix?scheme=http&endpoint_override=127.0.0.1:{free}" in said
    assert "Could not connect to server" in said


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("foo://x", "--root foo://x cannot be used: Unrecognized filesystem type in URI: foo://x"),
        ("s3://", "--root s3:// cannot be used: it names no bucket"),
        ("s3://key:secret@bucket/x", "--root s3://...@...: keys do not belong into a root"),
        ("s3://bucket/x?endpoint=here", "Unexpected query parameter in S3 URI: 'endpoint'"),
    ],
)
def test_a_root_that_nobody_knows_is_refused(folder, where, said):
    for verb in ("run", "status"):
        assert said in refused(folder, verb, where)


@pytest.fixture
def strict(port) -> Iterator[None]:
    """A store that asks who is there."""
    ask(port, "moto-api/reset-auth", "POST", b"0")
    yield
    ask(port, "moto-api/reset-auth", "POST", b"inf")


def test_credentials_that_a_store_refuses_are_named(folder, bucket, port, strict, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody-else")
    for verb in ("run", "status"):
        assert re.search(
            r"the store (refuses|does not know) these credentials", refused(folder, verb, uri(bucket, port))
        )


def test_a_bucket_that_cannot_be_written_is_refused(port):
    with pytest.raises(UserError, match=r"cannot be written: there is no such bucket .* choose another with --root"):
        check_writable(open_root(uri("no-such-bucket", port)))
