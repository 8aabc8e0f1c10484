"""What a driver starts next, with others at work on the same root."""

import json
import os
import time
from pathlib import Path

import pytest

from scaling import claims, results, work as working
from scaling.claims import Claim
from scaling.root import Root, open_root
from scaling.work import Work


@pytest.fixture
def root(tmp_path, monkeypatch) -> Root:
    monkeypatch.setattr(working, "LOOK", 0.0)
    return open_root(tmp_path)


def end(root: Root, name: str, status: str = "done", error: str | None = None) -> None:
    results.write_row(root, {"run_id": name, "status": status, "error": error})


def work_of(root: Root, names: str, wait: bool = True, **replaces: str) -> Work:
    return Work(root, list(names), dict.fromkeys(names) | replaces, wait)


def test_runs_come_in_order_each_once_and_then_nothing(root):
    work = work_of(root, "abc")
    assert [work.next() for _ in range(4)] == ["a", "b", "c", None]
    assert not work.is_over()
    for name in "abc":
        end(root, name)
        assert work.came_back(name)["status"] == "done"
    assert work.is_over()


def test_a_run_that_came_back_without_a_row_is_offered_again(root):
    work = work_of(root, "ab")
    assert work.next() == "a"
    assert work.came_back("a") is None
    assert work.next() == "a"


def test_what_others_did_or_hold_is_passed_over(root):
    work = work_of(root, "abc")
    end(root, "a")
    with Claim(root, "b") as other:
        other.take()
        assert work.next() == "c"
        assert work.next() is None
        assert not work.is_over()
    assert work.next() == "b"


def test_who_does_not_wait_is_over_when_others_hold_the_rest(root):
    work = work_of(root, "a", wait=False)
    with Claim(root, "a") as other:
        other.take()
        work.next()
        assert work.is_over()


def test_who_does_not_wait_looks_again_before_leaving(root, monkeypatch):
    """Whoever held the rest has died since the last look; nobody else would do it."""
    monkeypatch.setattr(working, "LOOK", 3600.0)
    work = work_of(root, "a", wait=False)
    with Claim(root, "a") as other:
        other.take()
        assert work.next() is None
        assert work.is_over()
    assert not work.is_over()
    assert work.next() == "a"


def test_a_claim_of_another_machine_that_stays_the_same_for_too_long_is_no_longer_heeded(root, monkeypatch):
    monkeypatch.setattr(claims, "STALE", 0.5)
    said = {**Claim(root, "a").said, "machine": "another", "time": 0.0}
    root.write("a/claim-x.json", json.dumps(said).encode())
    far = time.time() + 1e6  # its clock, or the root's, is no matter
    os.utime(Path(root.uri) / "a" / "claim-x.json", (far, far))
    work = work_of(root, "a")
    assert work.next() is None
    time.sleep(0.6)
    assert work.next() == "a"


@pytest.mark.parametrize("wait", [True, False])
def test_a_claim_that_was_old_before_is_not_heeded_at_first_sight(root, wait):
    """As after a reboot, or of a machine that is gone: who does not wait must not leave for it."""
    said = {**Claim(root, "a").said, "machine": "another", "time": 0.0}
    root.write("a/claim-x.json", json.dumps(said).encode())
    then = time.time() - claims.STALE - 5
    os.utime(Path(root.uri) / "a" / "claim-x.json", (then, then))
    work = work_of(root, "a", wait=wait)
    assert work.next() == "a"
    assert not work.is_over()
    work.came_back("a")
    assert work.next() == "a"


def test_a_sweep_that_was_sound_before_is_not_given_up(root):
    work = Work(root, list("abcd"), dict.fromkeys("abcd"), wait=True, is_sound=True)
    for name in "abc":
        work.next()
        end(root, name, "failed", "ValueError")
        work.came_back(name)
    assert work.given_up is None


def test_a_failed_row_that_is_to_be_replaced_does_not_count_until_it_is(root):
    end(root, "a", "failed", "diverged")
    before = results.read_row(root, "a")["finished"]
    work = work_of(root, "a", a=before)
    assert work.next() == "a"
    assert work.came_back("a") is None
    time.sleep(0.002)
    end(root, "a")
    assert work.came_back("a")["status"] == "done"


def test_equal_failures_from_the_start_end_a_sweep(root):
    work = work_of(root, "abcd")
    for number, name in enumerate("abc"):
        assert work.given_up is None
        work.next()
        end(root, name, "failed", f"ModuleNotFoundError: no module gym (train.py:{number})")
        work.came_back(name)
    assert work.is_over()
    assert work.given_up.startswith("3 runs failed alike before any was done: ModuleNotFoundError: no module gym")


@pytest.mark.parametrize("errors", [["diverged"] * 3, ["one", "two", "three"], ["OutOfMemoryError: no room"] * 3])
def test_divergence_and_unlike_failures_do_not(root, errors):
    work = work_of(root, "abcd")
    for name, error in zip("abc", errors, strict=True):
        work.next()
        end(root, name, "failed", error)
        work.came_back(name)
    assert work.given_up is None
    assert work.next() == "d"


def test_a_success_shows_that_the_sweep_is_sound(root):
    work = work_of(root, "abcde")
    for name in "abcd":
        work.next()
        end(root, name, *(() if name == "a" else ("failed", "x")))
        work.came_back(name)
    assert work.given_up is None


def test_a_root_in_trouble_is_looked_at_again_later(root, monkeypatch):
    work = work_of(root, "ab")

    def fails(*arguments: object) -> None:
        raise OSError("not now")

    with monkeypatch.context() as trouble:
        trouble.setattr(root, "files", fails)
        trouble.setattr(root, "read", fails)
        assert work.next() == "a"
        assert work.came_back("a") is None
    assert work.next() == "a"
