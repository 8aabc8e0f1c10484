"""How a store comes about: wanted by two at once, after a kill, from a source that changes, without room or memory."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from scaling import source
from scaling.building import build_once, file_identity
from scaling.datasets import d4rl
from scaling.errors import UserError
from scaling.source import INSIDE, TERMINAL, TIMEOUT, Piece, Source
from scaling.store import Store

from conftest import build, make_columns, write_hdf5


def pieces(lengths: list[int], rows: int, policies: bool = False, choices: bool = False) -> Iterator[Piece]:
    """Episodes of these lengths, ``rows`` transitions at a time; every other one ends by a timeout."""
    columns = make_columns(lengths, tail=2)
    ends = np.where(columns["terminals"], TERMINAL, np.where(columns["timeouts"], TIMEOUT, INSIDE)).astype(np.uint8)
    labels = np.repeat(np.arange(len(lengths) + 1), [*lengths, 2]) % 3
    actions = labels * 2 if choices else columns["actions"]
    for first in range(0, len(ends), rows):
        part = slice(first, first + rows)
        yield Piece(
            columns["observations"][part],
            actions[part],
            columns["rewards"][part],
            ends[part],
            labels[part] if policies else None,
        )


def built(cache: Path, source: Iterator[Piece] | list[Piece], name: str = "made") -> Store:
    return build_once(lambda: name, lambda: Source(name, source), cache)


def left(cache: Path) -> list[Path]:
    """What lies in a cache beside locks."""
    return [path for path in cache.rglob("*") if path.name != "stores" and path.suffix != ".lock"]


def _ref(store: Store) -> str:
    """SHA-256 over every array with its name, type and shape, in the documented order; then the number of choices."""
    whole = hashlib.sha256()
    for name in ("states", "actions", "rewards", "starts", "terminal", "policies"):
        array = getattr(store, name)
        if array is not None:
            whole.update(f"{name}|{array.dtype.str}|{array.shape}|".encode() + np.asarray(array).tobytes())
    if store.discrete:
        whole.update(f"choices|{store.action_size}|".encode())
    return whole.hexdigest()


@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize("policies", [False, True])
@pytest.mark.parametrize("choices", [False, True])
def test_the_digest_is_that_of_the_whole_arrays(tmp_path, rows, policies, choices):
    store = built(tmp_path, pieces([4, 1, 7, 2], rows, policies, choices))
    assert store.digest == _ref(store)
    assert store.lengths.tolist() == [4, 1, 7, 2]
    assert (store.policies is not None) == policies
    assert store.action_size == (5 if choices else 2)


def test_returns_are_summed_over_episodes_in_groups_of_any_size(tmp_path, monkeypatch):
    store = built(tmp_path, pieces([4, 1, 7, 2], 5))
    expected = [store.rewards[row:stop].sum() for stop in store.starts[1:] for row in range(stop)][-2:]
    assert store.rtg[-2:] == pytest.approx(expected)
    monkeypatch.setattr("scaling.building.GROUP", 1)
    np.testing.assert_array_equal(built(tmp_path, pieces([4, 1, 7, 2], 5), "other").rtg, store.rtg)


def test_a_piece_of_another_shape_is_refused_with_its_row(tmp_path):
    first, second = pieces([4, 4], 5)
    with pytest.raises(UserError, match=r"actions change from \(2,\) float32 to \(3,\) float32 in row 5"):
        built(tmp_path, [first, Piece(second.states, np.zeros((5, 3), np.float32), second.rewards, second.ends)])
    assert left(tmp_path) == []


SCRIPT = """
import sys, time
from pathlib import Path
from scaling.building import build_once
from scaling.datasets import d4rl
from scaling.source import Source
path, cache, report, pause = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
def read():
    with report.open("a") as file: file.write("read\\n")
    source = d4rl.read(path)
    def slowly():
        yield from source.pieces
        time.sleep(pause)
    return Source(source.name, slowly(), source.about)
print(build_once(lambda: "one", read, cache).digest)
"""


def builder(hdf5: Path, cache: Path, pause: float) -> subprocess.Popen[str]:
    """Another process that builds, and pauses when everything is read."""
    arguments = [hdf5, cache, cache.with_suffix(".report"), pause]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def wait_for(there: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not there():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_two_processes_that_want_a_store_at_the_same_time_build_it_once(tmp_path, hdf5):
    builders = [builder(hdf5, tmp_path / "cache", 0.3) for _ in range(2)]
    digests = {process.communicate(timeout=120)[0] for process in builders}
    assert [process.returncode for process in builders] == [0, 0]
    assert len(digests) == 1
    assert (tmp_path / "cache.report").read_text() == "read\n"


def test_a_builder_that_is_killed_hinders_nobody(tmp_path, hdf5):
    cache = tmp_path / "cache"
    process = builder(hdf5, cache, 600)
    wait_for(lambda: [*cache.rglob(".building-*/states.npy")])
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert [*cache.rglob(".building-*")] != []
    store = build_once(lambda: "one", lambda: d4rl.read(hdf5), cache)
    assert store.digest == _ref(store)
    assert [*cache.rglob(".building-*")] == []


def test_a_file_that_is_still_being_written_is_refused(tmp_path, hdf5, columns):
    def read(path: Path) -> Source:
        source = d4rl.read(path)
        write_hdf5(path, columns | {"rewards": columns["rewards"] + 1})
        return source

    with pytest.raises(UserError, match=r"small.hdf5 changed while it was read; wait until"):
        build(hdf5, read, tmp_path / "cache")
    assert left(tmp_path / "cache") == []
    assert build(hdf5, d4rl.read, tmp_path / "cache").digest


def test_a_file_that_vanishes_while_it_is_read_is_named(tmp_path, hdf5):
    def read(path: Path) -> Source:
        pieces = list(d4rl.read(path).pieces)
        path.unlink()
        return Source(str(path), pieces)

    with pytest.raises(UserError, match=r"small.hdf5: No such file"):
        build(hdf5, read, tmp_path / "cache")
    assert left(tmp_path / "cache") == []


def test_a_folder_is_another_once_any_file_below_it_changes(tmp_path, hdf5):
    before = file_identity(tmp_path)
    (tmp_path / "deep").mkdir()
    assert file_identity(tmp_path) == before
    (tmp_path / "deep" / "x").write_text("1")
    assert file_identity(tmp_path) != before


def test_a_store_that_is_there_is_opened_without_writing(tmp_path):
    """As from a cache that somebody else filled, which this user can only read."""
    first = built(tmp_path, pieces([4, 6], 5))
    for lock in tmp_path.rglob("*.lock"):
        lock.unlink()
    assert built(tmp_path, []).digest == first.digest
    assert [*tmp_path.rglob("*.lock")] == []


def test_a_store_that_was_damaged_in_the_cache_is_named(tmp_path):
    store = built(tmp_path, pieces([4, 6], 5))
    os.truncate(store.actions.filename, 0)
    with pytest.raises(UserError, match=r"stores/\w+: not a whole store"):
        built(tmp_path, [])


@pytest.fixture
def little_room() -> Iterator[None]:
    """No file of this process may grow beyond 100 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("rows", [10, 100, 3000, 100_000])
@pytest.mark.usefixtures("little_room")
def test_without_room_nothing_remains_and_the_cache_is_named(tmp_path, rows):
    with pytest.raises(UserError, match=r"cannot write the data cache .*/stores: File too large; set SCALING_CACHE"):
        built(tmp_path, pieces([4000, 4000], rows))
    assert left(tmp_path) == []


def test_memory_does_not_grow_with_the_dataset(tmp_path):
    """Of 600 MB in pieces of 12 MB: a writer that collects them would hold all."""
    script = """
import resource, sys
from pathlib import Path
import numpy as np
from scaling.building import build_once
from scaling.source import Piece, Source
rows, width = 60_000, 50
def pieces():
    for number in range(50):
        states = np.full((rows, width), number, np.float32)
        ends = (np.arange(rows) % 1000 == 999).astype(np.uint8)
        yield Piece(states, states[:, :3] / 100, states[:, 0], ends)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store = build_once(lambda: "big", lambda: Source("big", pieces()), Path(sys.argv[1]))
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(store.states.nbytes // 1_000_000, grown // 1000)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    size, grown = map(int, done.stdout.split())
    assert size == 600
    assert grown < 250


def test_the_number_of_choices_is_part_of_the_content(tmp_path):
    """It sets the width of the action head, so runs on two such stores are different runs."""
    columns = make_columns([4, 6, 3])
    columns["actions"] = np.arange(13) % 3
    write_hdf5(tmp_path / "few.hdf5", columns)
    write_hdf5(tmp_path / "more.hdf5", columns)
    with h5py.File(tmp_path / "more.hdf5", "a") as file:
        file.attrs["choices"] = 6
    few, more = (build(tmp_path / name, d4rl.read) for name in ("few.hdf5", "more.hdf5"))
    assert (few.action_size, more.action_size) == (3, 6)
    assert few.digest != more.digest


@pytest.mark.parametrize("piece_bytes", [1, 100, 1 << 20])
def test_a_policy_that_changes_inside_an_episode_is_refused_wherever_pieces_end(tmp_path, monkeypatch, piece_bytes):
    monkeypatch.setattr(source, "PIECE_BYTES", piece_bytes)
    columns = make_columns([4, 6, 3])
    columns["policies"] = np.array([0] * 4 + [1] * 6 + [0] * 3, np.int32)
    assert build(write_hdf5(tmp_path / "good.hdf5", columns), d4rl.read).policies.tolist() == [0, 1, 0]
    columns["policies"][7] = 0
    with pytest.raises(UserError, match="the policy changes in row 7, inside an episode"):
        build(write_hdf5(tmp_path / "bad.hdf5", columns), d4rl.read)


def test_flags_that_are_no_numbers_are_refused(tmp_path):
    columns = make_columns([4, 6, 3])
    columns["terminals"] = np.where(np.arange(13) == 2, np.nan, columns["terminals"])
    with pytest.raises(UserError, match="terminals hold NaN or infinity, first in row 2"):
        build(write_hdf5(tmp_path / "bad.hdf5", columns), d4rl.read)
