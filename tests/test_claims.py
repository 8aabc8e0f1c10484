"""Claims: one holder at a time, void when old or when the process is gone, whatever the clocks say."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scaling import claims
from scaling.claims import Claim
from scaling.root import Root, open_root


@pytest.fixture
def root(tmp_path) -> Root:
    return open_root(tmp_path)


def held(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "a").iterdir())


def test_a_run_that_is_taken_is_refused_to_others_until_it_is_free(root, tmp_path):
    with Claim(root, "a") as first:
        assert first.take()
        with Claim(root, "a") as second:
            assert not second.take()
        assert held(tmp_path) == [first.path.partition("/")[2]]
        with Claim(root, "b") as other:
            assert other.take()
    assert held(tmp_path) == []
    with Claim(root, "a") as third:
        assert third.take()


def test_of_many_that_come_at_once_never_two_hold_a_run(root):
    holding, most, turns = 0, 0, []
    count = threading.Lock()

    def work() -> None:
        nonlocal holding, most
        for _ in range(30):
            with Claim(root, "a") as claim:
                if claim.take():
                    with count:
                        holding += 1
                        most = max(most, holding)
                    time.sleep(0.001)
                    with count:
                        holding -= 1
                        turns.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert turns


def leave(root: Root, age: float, **changes: object) -> None:
    """A claim that another process left so many seconds ago, by the root's clock."""
    said = {**Claim(root, "a").said, "time": time.time(), **changes}
    root.write("a/claim-other.json", json.dumps(said).encode())
    then = time.time() - age
    os.utime(Path(root.uri) / "a" / "claim-other.json", (then, then))


@pytest.mark.parametrize(("age", "free"), [(0.0, False), (claims.STALE - 10, False), (claims.STALE + 1, True)])
def test_a_claim_that_was_not_renewed_for_long_is_void(root, tmp_path, age, free):
    leave(root, age, machine="another")
    with Claim(root, "a") as claim:
        assert claim.take() == free
        assert (tmp_path / "a" / "claim-other.json").exists() != free


@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
def test_what_a_worker_thinks_the_time_is_does_not_matter(root, skew):
    leave(root, 0.0, machine="another", time=time.time() + skew, since=time.time() + skew)
    with Claim(root, "a") as claim:
        assert not claim.take()


def test_a_claim_of_a_process_that_is_gone_from_this_machine_is_void_at_once(root):
    child = subprocess.Popen([sys.executable, "-c", ""])
    leave(root, 0.0, pid=child.pid, started=claims._started(child.pid))
    with Claim(root, "a") as claim:
        child.wait()
        assert claim.take()


def test_a_number_that_another_process_has_now_does_not_keep_a_claim_alive(root):
    leave(root, 0.0, pid=os.getpid(), started="1")
    with Claim(root, "a") as claim:
        assert claim.take()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]"])
def test_a_claim_that_says_nothing_is_void(root, content):
    root.write("a/claim-other.json", content)
    with Claim(root, "a") as claim:
        assert claim.take()


def test_a_held_claim_is_renewed_with_what_is_told(root, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.5)
    with Claim(root, "a") as claim:
        claim.take()
        claim.tell(update=7)
        deadline = time.monotonic() + 20
        while claims.read(root, claim.path).get("update") != 7 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert claims.read(root, claim.path)["update"] == 7


def test_who_is_robbed_learns_it_and_does_not_take_it_back(root, tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.5)
    with Claim(root, "a") as claim:
        claim.take()
        root.remove(claim.path)
        deadline = time.monotonic() + 20
        while not claim.lost and time.monotonic() < deadline:
            time.sleep(0.05)
        assert claim.lost
        assert held(tmp_path) == []


def test_who_was_silent_for_too_long_learns_that_the_run_is_lost(root, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.5)
    monkeypatch.setattr(claims, "STALE", 0.8)
    with Claim(root, "a") as claim:
        claim.take()
        (Path(root.uri) / claim.path).unlink()
        (Path(root.uri) / "a").rename(Path(root.uri) / "gone")
        (Path(root.uri) / "a").write_text("no folder: claims cannot be written")
        deadline = time.monotonic() + 20
        while not claim.lost and time.monotonic() < deadline:
            time.sleep(0.1)
        assert claim.lost


def test_void_claims_on_runs_that_have_ended_are_removed_and_no_others(root, tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with Claim(root, "a") as claim:
        assert claim.take()
        said = claims.read(root, claim.path)
        for path in ("a/claim-dead.json", "b/claim-dead.json"):
            root.write(path, json.dumps({**said, "pid": gone.pid}).encode())
        root.write("a/claim-old.json", json.dumps({**said, "machine": "another"}).encode())
        os.utime(tmp_path / "a" / "claim-old.json", (0, 0))
        claims.tidy(root, {"a"})
        assert held(tmp_path) == [claim.path.partition("/")[2]]
    assert (tmp_path / "b" / "claim-dead.json").exists()
