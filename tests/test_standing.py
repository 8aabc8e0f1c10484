"""How a sweep stands: who works, since when, who went silent, how long the rest takes."""

import json
import os
import time
from pathlib import Path

import pytest

from scaling import claims, manifest, results, standing
from scaling.claims import Claim
from scaling.manifest import Known, Manifest
from scaling.root import Root, open_root

KNOWN = {
    "a": Known("small, fraction 1", 100, 1e6),
    "b": Known("small, fraction 0.5", 100, 1e6),
    "c": Known("large, fraction 1", 100, 4e6),
    "d": Known("large, fraction 0.5", 100, 4e6),
}


@pytest.fixture
def root(tmp_path) -> Root:
    return open_root(tmp_path)


def done(root: Root, name: str, seconds: float = 10.0) -> None:
    times = {"train_seconds": 0.75 * seconds, "evaluate_seconds": 0.25 * seconds}
    results.write_row(root, {"run_id": name, "status": "done", "loss_best": 0.5, **times})


def claim(root: Root, name: str, since: float = 0.0, silent: float = 0.0, skew: float = 0.0, **changes: object) -> None:
    """A claim made and renewed so many seconds ago, by a worker whose clock is so much ahead."""
    now = time.time()
    said = {**Claim(root, name).said, "since": now - since + skew, "time": now - silent + skew, **changes}
    path = f"{name}/claim-1.json"
    root.write(path, json.dumps(said).encode())
    os.utime(Path(root.uri) / path, (time.time() - silent,) * 2)


def test_every_run_is_in_one_state(root):
    done(root, "a")
    results.write_row(root, {"run_id": "b", "status": "failed", "error": "diverged"})
    claim(root, "c", machine="another", since=30.0, silent=10.0, update=25)
    found = standing.look(root, list(KNOWN))
    assert list(found.done) == ["a"]
    assert found.failed["b"]["error"] == "diverged"
    assert found.running["c"].seconds == pytest.approx(30.0, abs=2.0)
    assert found.running["c"].silent == pytest.approx(10.0, abs=2.0)
    assert found.waiting == ["d"]
    assert found.best == 0.5


@pytest.mark.parametrize("changes", [{"machine": "another", "silent": claims.STALE + 5}, {"started": "1"}])
def test_a_run_whose_worker_is_silent_or_gone_is_stale(root, changes):
    claim(root, "a", **changes)
    found = standing.look(root, ["a"])
    assert list(found.stale) == ["a"]
    assert found.left == ["a"]


def test_a_worker_whose_clock_is_off_is_neither_stale_nor_unnoticed(root):
    claim(root, "a", machine="another", since=100.0, skew=500.0)
    working = standing.look(root, ["a"]).running["a"]
    assert working.skew == pytest.approx(500, abs=2.0)
    assert working.seconds == pytest.approx(100, abs=2.0)


def test_time_left_is_that_of_the_same_model_or_by_flops(root):
    assert standing.look(root, list(KNOWN)).seconds_left(KNOWN) is None
    done(root, "a", 10.0)
    assert standing.look(root, list(KNOWN)).seconds_left(KNOWN) == pytest.approx(10.0 + 2 * 40.0)
    done(root, "c", 60.0)
    claim(root, "d", machine="another", update=50)
    assert standing.look(root, list(KNOWN)).seconds_left(KNOWN) == pytest.approx(10.0 + 30.0)


def test_a_manifest_comes_back_for_the_sweep_as_it_was_and_no_other(root):
    written = Manifest("study", "digest", KNOWN)
    manifest.write(root, written)
    assert manifest.read(root, "study", "digest") == written
    assert manifest.read(root, "study", "other") is None
    assert manifest.read(root, "another", "digest") is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"digest": "digest"}', b'{"digest": "digest", "name": 1, "runs": 5}']
)
def test_a_manifest_that_cannot_be_read_is_as_good_as_none(root, content):
    root.write("sweeps/study.json", content)
    assert manifest.read(root, "study", "digest") is None
