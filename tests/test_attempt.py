"""Attempts at runs: going on from a checkpoint, leaving no trace in the process, failing in good order."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from scaling import checkpoint, ending, held, plug, population, results, training
from scaling.attempt import Alone, Job, attempt, give_up
from scaling.claims import Claim
from scaling.errors import Interrupted, TeamBroken, UserError
from scaling.order import Order
from scaling.pack import attempt_together
from scaling.root import open_root
from scaling.runs import open_store
from scaling.spec import DataSpec, EvaluateSpec, ModelSpec, RunSpec, TrainSpec, to_dict
from scaling.train import check_processes, identity

from conftest import make_columns, write_hdf5

MODEL = ModelSpec(width=16, depth=1, context=6, subsequence=2, dropout=0.1, max_timestep=100)
RUN = RunSpec(
    model=MODEL, data=DataSpec(path="data.hdf5", rtg_scale=10.0), train=TrainSpec(amount=24.0, batch=6, evaluations=4)
)


@pytest.fixture
def folder(tmp_path) -> Path:
    lengths = np.random.default_rng(1).integers(4, 30, 40).tolist()
    write_hdf5(tmp_path / "data.hdf5", make_columns(lengths))
    return tmp_path


def order_of(folder: Path, spec: RunSpec = RUN, root: str = "runs", **changes: object) -> Order:
    digest = open_store(spec, folder).digest
    values = {
        "run_id": identity(spec, digest)["run_id"],
        "spec": to_dict(spec),
        "digest": digest,
        "folder": str(folder),
        "root": str(folder / root),
        "cache": os.environ["SCALING_CACHE"],
        "threads": 1,
        "checkpoint_seconds": 1e9,
        "keep_checkpoint": False,
    }
    return Order(**values | changes)


def never() -> bool:
    return False


def quiet(update: int, loss: float) -> None:
    """Hear nothing."""


def row_of(order: Order) -> dict:
    """What must be equal in two rows of one run."""
    row = results.read_row(open_root(order.root), order.run_id)
    return {name: row[name] for name in row if results.BY_NAME[name].repeatable}


def names(order: Order) -> list[str]:
    return sorted(path.name for path in (Path(order.root) / order.run_id).iterdir())


class Breaking:
    """A team of one that is stopped at an update, once or again and again."""

    size = 1

    def __init__(self, at: int, error: BaseException) -> None:
        self.at, self.error, self.left = at, error, 1

    def train(self, job: Job, report, keeper):
        def told(update: int) -> None:
            if update == self.at and self.left:
                self.left -= 1
                raise self.error

        return job.train(report, _Asked(keeper, told))


class _Asked:
    def __init__(self, keeper, told) -> None:
        self.keeper, self.told, self.updates, self.keeps_last = keeper, told, 0, keeper.keeps_last

    def wants(self) -> bool:
        self.updates += 1
        self.told(self.updates)
        return self.keeper.wants()

    def keep(self, state) -> None:
        self.keeper.keep(state)


@pytest.mark.parametrize("kind", plug.names("models"))
@pytest.mark.parametrize("at", [1, 6, 11, 23])
def test_a_run_that_goes_on_from_a_checkpoint_ends_with_the_same_row(folder, kind, at):
    """Bit for bit, in the middle of a stretch of the curve and at its points, dropout included."""
    spec = dataclasses.replace(RUN, model=dataclasses.replace(MODEL, kind=kind))
    whole, broken = order_of(folder, spec), order_of(folder, spec, root="broken", checkpoint_seconds=0.0)
    assert attempt(whole, Alone(), quiet, never)
    with pytest.raises(TeamBroken):
        attempt(broken, Breaking(at + 1, TeamBroken("killed")), quiet, never)
    assert names(broken) == ["checkpoint.pt"]
    state = checkpoint.unpack(broken.run_id, open_root(broken.root).read(checkpoint.path_of(broken.run_id)))
    assert state["done"] == at
    assert attempt(dataclasses.replace(broken, checkpoint_seconds=1e9), Alone(), quiet, never)
    assert row_of(broken) == row_of(whole)
    assert results.read_row(open_root(broken.root), broken.run_id)["resumes"] == 1
    assert names(broken) == ["row.parquet"]


def test_runs_to_convergence_with_rollouts_go_on_alike(folder):
    spec = dataclasses.replace(
        RUN,
        data=DataSpec(kind="tmaze", horizon=5, episodes=60, rtg_scale=1.0),
        model=dataclasses.replace(MODEL, max_timestep=100, context=5),
        train=TrainSpec(budget="convergence", amount=40.0, batch=4, evaluations=20, patience=1, learning_rate=0.05),
        evaluate=EvaluateSpec(env="own", episodes=4, targets=(1.0,)),
    )
    whole, broken = order_of(folder, spec), order_of(folder, spec, root="broken", checkpoint_seconds=0.0)
    assert attempt(whole, Alone(), quiet, never)
    assert row_of(whole)["error"] is None
    updates = row_of(whole)["updates"]
    assert updates < 40
    for at in (5, updates - 4 + 2):  # while training; gone on from update 4, while the episodes are played
        with pytest.raises(TeamBroken):
            attempt(broken, Breaking(at, TeamBroken("killed")), quiet, never)
    assert attempt(broken, Alone(), quiet, never)
    assert row_of(broken) == row_of(whole)
    assert names(broken) == ["episodes.parquet", "row.parquet"]


def test_nothing_of_one_run_is_left_in_the_process_for_the_next(folder):
    """A, B, A, with B of another kind, precision, batch, number of threads, and broken off in the middle."""
    other = dataclasses.replace(
        RUN,
        model=dataclasses.replace(MODEL, kind="decision_transformer", heads=2),
        train=TrainSpec(amount=8.0, batch=5, evaluations=2, precision="bf16"),
        seed=3,
    )
    first, again = order_of(folder), order_of(folder, root="again")
    assert attempt(first, Alone(), quiet, never)
    assert attempt(order_of(folder, other, threads=2), Alone(), quiet, never)
    with pytest.raises(TeamBroken):
        attempt(order_of(folder, other, root="broken", threads=2), Breaking(3, TeamBroken("")), quiet, never)
    torch.manual_seed(1)
    os.environ["WORLD_SIZE"] = "2"  # as a launcher may leave it
    assert attempt(again, Alone(), quiet, never)
    assert row_of(again) == row_of(first)


@pytest.mark.parametrize("damage", [b"", b"nothing", None])
def test_a_damaged_or_foreign_checkpoint_is_as_good_as_none(folder, damage):
    order = order_of(folder)
    state = {"done": 5}
    content = damage if damage is not None else checkpoint.pack("another", state)
    open_root(order.root).write(checkpoint.path_of(order.run_id), content)
    assert attempt(order, Alone(), quiet, never)
    assert row_of(order)["updates"] == 24
    assert results.read_row(open_root(order.root), order.run_id)["resumes"] == 0


def test_a_checkpoint_runs_no_code_of_whoever_wrote_it(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    assert checkpoint.unpack("a", checkpoint.pack("a", Evil())) is None
    assert not (tmp_path / "ran").exists()


def test_the_last_state_is_kept_on_request_and_holds_the_network(folder):
    order = order_of(folder, keep_checkpoint=True)
    assert attempt(order, Alone(), quiet, never)
    assert names(order) == ["checkpoint.pt", "row.parquet"]
    state = checkpoint.unpack(order.run_id, open_root(order.root).read(checkpoint.path_of(order.run_id)))
    assert state["done"] == 24
    model = plug.load("models", "mambadm").Model(MODEL, open_store(RUN, folder).space)
    model.load_state_dict(state["model"])


def test_a_driver_that_asks_to_stop_gets_a_checkpoint_and_no_row(folder):
    order = order_of(folder, dataclasses.replace(RUN, train=TrainSpec(amount=1e6, batch=6)))
    asked = threading.Event()
    threading.Timer(2.0, asked.set).start()
    assert not attempt(order, Alone(), quiet, asked.is_set)
    assert names(order) == ["checkpoint.pt"]


IN_A_THREAD = """
import json, sys, threading
from scaling import ending
from scaling.attempt import Alone, attempt
from scaling.order import Order

order, under_way = Order(**json.load(sys.stdin)), threading.Event()

def work():
    with ending.awaited():
        attempt(order, Alone(), lambda update, loss: under_way.set(), lambda: False)

threading.Thread(target=work, daemon=True).start()
sys.exit(3 if under_way.wait(60) else "the run did not begin")
"""
"""A worker as Ray's are: a signal ends its main thread, while another has a run."""


def test_a_process_that_ends_saves_the_state_of_its_run_before(folder):
    order = order_of(folder, dataclasses.replace(RUN, train=TrainSpec(amount=1e6, batch=6, evaluations=100_000)))
    told = json.dumps(dataclasses.asdict(order))
    done = subprocess.run([sys.executable, "-c", IN_A_THREAD], input=told, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3, done.stderr
    assert names(order) == ["checkpoint.pt"]
    state = checkpoint.unpack(order.run_id, open_root(order.root).read(checkpoint.path_of(order.run_id)))
    assert 0 < state["done"] < 1e6


def test_a_process_that_is_ending_does_not_ask_the_driver(monkeypatch):
    """Ray ends a worker at once that speaks to it after it has said goodbye."""
    monkeypatch.setattr(ending, "_begun", threading.Event())
    told = []
    stop = held.Stop(lambda: bool(told.append("asked")))
    stop.ask()
    assert (stop.asked, told) == (False, ["asked"])
    ending._begun.set()
    stop.ask()
    assert (stop.asked, told) == (True, ["asked"])


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_what_fails_in_a_process_that_is_ending_is_no_failed_run(folder, monkeypatch, seeds):
    """As when the operators are gone under the thread that uses them."""
    monkeypatch.setattr(ending, "_begun", threading.Event())
    orders = [order_of(folder, dataclasses.replace(RUN, seed=seed)) for seed in seeds]

    def vanished(*_):
        ending._begun.set()
        raise AttributeError("'_OpNamespace' 'scaling' object has no attribute 'layers'")

    monkeypatch.setattr(training.Training, "_part", vanished)
    monkeypatch.setattr(population.Population, "_step", vanished)
    attempt_together(orders, Alone(), lambda *_: None, never)
    assert ending.has_begun()
    assert [names(order) for order in orders] == [[] for _ in orders]


def test_memory_that_does_not_suffice_makes_smaller_parts_of_the_batch(folder, monkeypatch):
    order = order_of(folder)
    parts = []
    original = training.Training._part

    def hungry(self, starts, share, factor):
        parts.append(share.stop - share.begin)
        if share.stop - share.begin > 2:
            raise torch.OutOfMemoryError("no room")
        return original(self, starts, share, factor)

    monkeypatch.setattr(training.Training, "_part", hungry)
    assert attempt(order, Alone(), quiet, never)
    assert parts[:3] == [6, 3, 2]
    row = results.read_row(open_root(order.root), order.run_id)
    assert row["status"] == "done"
    assert row["micro_batches"] == 4
    monkeypatch.setattr(training.Training, "_part", original)
    whole = order_of(folder, root="whole")
    assert attempt(whole, Alone(), quiet, never)
    for one, two in zip(row["curve"], row_of(whole)["curve"], strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)


def test_memory_that_never_suffices_is_a_failed_row(folder, monkeypatch):
    order = order_of(folder)

    def hungry(self, starts, share, factor):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(training.Training, "_part", hungry)
    assert attempt(order, Alone(), quiet, never)
    assert row_of(order)["status"] == "failed"
    assert row_of(order)["error"].startswith("RuntimeError: DefaultCPUAllocator: can't allocate memory")


def test_an_error_inside_is_a_failed_row_that_is_not_done_again_unasked(folder):
    order = order_of(folder)
    assert attempt(order, Breaking(3, ZeroDivisionError("one by\nnothing")), quiet, never)
    row = results.read_row(open_root(order.root), order.run_id)
    assert row["error"].startswith("ZeroDivisionError: one by nothing (test_attempt.py:")
    assert not attempt(order, Alone(), quiet, never)
    assert attempt(dataclasses.replace(order, replaces=row["finished"]), Alone(), quiet, never)
    assert row_of(order)["status"] == "done"
    assert not attempt(dataclasses.replace(order, replaces=row["finished"]), Alone(), quiet, never)


def test_a_run_that_another_process_has_claimed_is_left_alone(folder):
    order = order_of(folder)
    with Claim(open_root(order.root), order.run_id) as claim:
        claim.take()
        assert not attempt(order, Alone(), quiet, never)
    assert names(order) == []


def test_a_failure_never_takes_the_place_of_a_done_row(folder):
    """Somebody else took the run over and did it, while this attempt went on and failed."""
    order, other = order_of(folder), order_of(folder, root="other")
    assert attempt(other, Alone(), quiet, never)
    done = results.read_row(open_root(other.root), other.run_id)

    class Overtaken(Alone):
        def train(self, job, report, keeper):
            results.write_row(open_root(order.root), {name: done[name] for name in done if name != "finished"})
            raise ZeroDivisionError

    attempt(order, Overtaken(), quiet, never)
    assert row_of(order)["status"] == "done"
    give_up(order, "the worker process died")
    assert row_of(order)["status"] == "done"


def test_a_run_is_given_up_with_a_row_unless_another_is_at_it(folder):
    order = order_of(folder)
    with Claim(open_root(order.root), order.run_id) as claim:
        claim.take()
        give_up(order, "the worker process died")
    assert results.read_row(open_root(order.root), order.run_id) is None
    give_up(order, "the worker process died")
    failed = results.read_row(open_root(order.root), order.run_id)
    assert failed["error"] == "the worker process died"
    again = dataclasses.replace(order, replaces=failed["finished"])
    time.sleep(0.002)
    give_up(again, "it died again")
    assert row_of(order)["error"] == "it died again"


def test_a_wish_to_stop_that_came_before_the_run_leaves_no_trace(folder):
    order = order_of(folder)
    assert not attempt(order, Alone(), quiet, lambda: True)
    assert not Path(order.root).exists()


def test_one_wrong_byte_in_a_checkpoint_is_noticed():
    state = {"done": 5, "weights": torch.arange(1000.0)}
    content = checkpoint.pack("a", state)
    assert checkpoint.unpack("a", content)["done"] == 5
    for place in np.random.default_rng(0).integers(0, len(content), 50):
        damaged = bytearray(content)
        damaged[place] ^= 1
        assert checkpoint.unpack("a", bytes(damaged)) is None


def test_a_row_waits_for_a_root_in_trouble(folder, monkeypatch):
    order, fails = order_of(folder), [3]
    original = results.write_row

    def sometimes(root, row):
        if fails[0]:
            fails[0] -= 1
            raise OSError(28, "No space left on device")
        original(root, row)

    monkeypatch.setattr(results, "write_row", sometimes)
    assert attempt(order, Alone(), quiet, never)
    assert fails == [0]
    assert row_of(order)["status"] == "done"


def test_a_root_in_trouble_for_too_long_loses_the_attempt_not_the_run(folder, monkeypatch):
    order = order_of(folder)

    def fails(root, row):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(held, "PATIENCE", 0.5)
    with monkeypatch.context() as trouble:
        trouble.setattr(results, "write_row", fails)
        with pytest.raises(OSError, match="Read-only"):
            attempt(order, Alone(), quiet, never)
    assert attempt(order, Alone(), quiet, never)


def test_a_checkpoint_that_finds_no_room_costs_no_run(folder, monkeypatch):
    order = order_of(folder, checkpoint_seconds=0.0)

    def fails(run_id, state):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "pack", fails)
    assert attempt(order, Alone(), quiet, never)
    assert row_of(order)["status"] == "done"


def test_whoever_lost_the_run_stops_working_on_it(folder):
    order = order_of(folder)

    class Losing(Alone):
        def train(self, job, report, keeper):
            keeper.claim.lost = True
            with pytest.raises(Interrupted):
                job.train(report, keeper)
            raise Interrupted

    assert not attempt(order, Losing(), quiet, never)
    assert names(order) == []


SCRIPT = """
import json, sys
from scaling.attempt import Job
from scaling.order import Order
order = Order(**json.loads(sys.argv[1]))
outcome = Job(order=order, micro_batches=int(sys.argv[2]), state=None).train(lambda update, loss: None, None)
import torch.distributed as dist
if dist.get_rank() == 0:
    print(json.dumps({name: outcome.row[name] for name in ("curve", "processes", "micro_batches", "exposures")}))
dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("kind", "precision", "processes", "micro_batches"),
    [
        ("mambadm", "fp32", 2, 1),
        ("decision_transformer", "fp32", 2, 1),
        ("mambadm", "fp32", 2, 3),
        ("mambadm", "fp32", 3, 1),
        ("mambadm", "bf16", 2, 1),
    ],
)
def test_processes_and_parts_of_a_batch_give_the_losses_of_one(folder, kind, precision, processes, micro_batches):
    """Real data-parallel training over gloo, with dropout and a batch that does not divide evenly."""
    spec = dataclasses.replace(
        RUN,
        model=dataclasses.replace(MODEL, kind=kind, heads=2),
        train=TrainSpec(amount=12.0, batch=7, evaluations=3, precision=precision),
    )
    spec = dataclasses.replace(spec, model=dataclasses.replace(spec.model, heads=2 if "transformer" in kind else 1))
    order = order_of(folder, spec)
    (folder / "run.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    arguments = [str(folder / "run.py"), json.dumps(dataclasses.asdict(order)), str(micro_batches)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    shared = json.loads(done.stdout)
    assert attempt(order, Alone(), quiet, never)
    alone = row_of(order)
    assert shared["processes"] == processes
    assert shared["micro_batches"] == micro_batches
    assert shared["exposures"] == alone["exposures"]
    tolerance = 1e-5 if precision == "fp32" else 1e-3
    for one, other in zip(shared["curve"], alone["curve"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=tolerance)


def test_a_batch_smaller_than_the_processes_is_refused():
    with pytest.raises(UserError, match=r"8 processes cannot share a train\.batch of 6; use fewer --workers"):
        check_processes(RUN, 8)


def test_a_fault_of_a_gpu_costs_the_process_not_the_run(folder):
    order = order_of(folder)
    with pytest.raises(
        ChildProcessError, match="this process can train no more: RuntimeError: CUDA error: device-side"
    ):
        attempt(order, Breaking(3, RuntimeError("CUDA error: device-side assert triggered")), quiet, never)
    assert results.read_row(open_root(order.root), order.run_id) is None
    assert attempt(order, Alone(), quiet, never)
