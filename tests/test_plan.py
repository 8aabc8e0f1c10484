"""What a plan says of time: order and slots are simulated, shapes are told apart, and no network is too large."""

import itertools
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from scaling import calibration, cli, grid, neighbours, plan
from scaling.calibration import Shape, calibrate, log_log, shape_of
from scaling.cost import Cost
from scaling.runs import Runs, identify
from scaling.spec import ModelSpec, RunSpec, TrainSpec
from scaling.timing import Timing, check_room, timing_of

SWEEP = """
name: tiny
base:
  model: {width: 8, depth: 1, context: 4, subsequence: 2}
  data: {kind: tmaze, horizon: 4, episodes: 20, starts: episode, rtg_scale: 1.0}
  train: {amount: 5, batch: 3, evaluations: 2}
axes: AXES
"""


def sweep(folder, axes: str, base: str = SWEEP):
    path = folder / "tiny.yaml"
    path.write_text(base.replace("AXES", axes))
    return path


def read(folder, axes: str, base: str = SWEEP) -> Runs:
    return identify(grid.read(sweep(folder, axes, base)))


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "BUDGET", 0.01)
    threads = torch.get_num_threads()
    yield lambda *arguments: CliRunner().invoke(cli.main, ["plan", "tiny.yaml", "--cpus", "1", *arguments])
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("seconds", "slots", "wall"),
    [([5], 3, 5), ([4, 3, 2, 1], 2, 5), ([3, 3, 2, 2, 2], 2, 7), ([10, 1, 1, 1], 2, 10), ([1] * 7, 3, 3), ([], 2, 0)],
)
def test_a_sweep_takes_as_long_as_its_busiest_slot(seconds, slots, wall):
    assert plan.makespan(seconds, slots) == wall


def test_one_slot_takes_the_sum_and_no_number_of_slots_beats_the_longest_run():
    seconds = np.random.default_rng(0).uniform(1, 9, 20).tolist()
    walls = [plan.makespan(seconds, slots) for slots in (1, 2, 4, 8, 20, 30)]
    assert walls[0] == pytest.approx(sum(seconds))
    assert all(one >= other for one, other in itertools.pairwise(walls))
    assert walls[-1] == max(seconds)


def test_times_between_two_shapes_follow_a_power_law_and_are_never_less_than_the_cheapest():
    xs = [10.0, 1000.0]
    ys = [2.0 * x**0.7 for x in xs]
    assert log_log(100.0, xs, ys) == pytest.approx(2.0 * 100**0.7)
    assert log_log(1.0, xs, ys) == pytest.approx(ys[0])
    assert log_log(5000.0, xs, ys) == pytest.approx(5 * ys[1])


def test_runs_that_differ_in_seed_subset_and_learning_rate_share_a_shape(tmp_path):
    runs = read(tmp_path, "{seed: [0, 1], data.fraction: [0.5, 1.0], train.learning_rate: [1.0e-3, 2.0e-3]}")
    assert len({shape_of(spec, runs.store(spec), 1.0) for spec in runs.specs.values()}) == 1
    for axes in ("{model.width: [8, 16]}", "{train.batch: [3, 4]}", "{model.kind: [mambadm, dmamba]}"):
        runs = read(tmp_path, axes)
        assert len({shape_of(spec, runs.store(spec), 1.0) for spec in runs.specs.values()}) == 2


def fake(width: int, kind: str = "mambadm") -> Shape:
    """A shape of so many FLOPs; nothing of its dataset is looked at but its name."""
    spec = RunSpec(model=ModelSpec(kind=kind, width=width), train=TrainSpec(batch=2))
    store = type("Store", (), {"digest": "d"})()
    return shape_of(spec, store, float(width))


def pretend(monkeypatch, room: float = math.inf) -> list[int]:
    """Trials that take no time, of networks whose time is their width; the widths tried."""
    tried = []

    def trial(spec, store, budget):
        tried.append(spec.model.width)
        w = float(spec.model.width)
        return Timing(prepare=1.0, update=w, window=2 * w, step=0.0) if w <= room else None

    monkeypatch.setattr(calibration, "timing_of", trial)
    return tried


def test_without_time_the_two_ends_of_every_kind_are_tried_and_the_rest_lies_between(monkeypatch):
    shapes = [fake(w, kind) for kind in ("mambadm", "dmamba") for w in (2, 4, 8, 16, 32)]
    tried = pretend(monkeypatch)
    trials = calibrate(shapes, 0.0)
    assert sorted(tried) == [2, 2, 32, 32]
    for shape in shapes:
        found = calibration.timing(shape, trials)
        assert found.update == pytest.approx(shape.spec.model.width)
        assert found.window == pytest.approx(2 * shape.spec.model.width)


def test_with_time_every_shape_is_tried_once_the_farthest_from_the_others_first(monkeypatch):
    tried = pretend(monkeypatch)
    calibrate([fake(w) for w in (2, 4, 8, 16, 32)], 60.0)
    assert tried[:3] == [2, 32, 8]
    assert sorted(tried) == [2, 4, 8, 16, 32]


def test_where_the_dearest_does_not_fit_the_next_that_does_is_looked_for(monkeypatch):
    tried = pretend(monkeypatch, room=8)
    trials = calibrate([fake(w) for w in (2, 4, 8, 16, 32)], 0.0)
    assert tried == [2, 32, 16, 8]
    assert trials[fake(32)] is None
    assert calibration.timing(fake(32), trials).update == pytest.approx(32)


def test_an_estimate_counts_updates_held_out_losses_and_preparation(tmp_path, monkeypatch):
    runs = read(tmp_path, "{model.width: [8], seed: [0, 1], train.amount: [5, 50]}")
    monkeypatch.setattr(
        calibration, "timing_of", lambda spec, store, budget: Timing(prepare=7.0, update=3.0, window=0.5, step=100.0)
    )
    found = plan.estimate(runs, plan.plan(runs))
    assert (found.tried, found.shapes, found.parts) == (1, 1, {})
    for name, spec in runs.specs.items():
        tiles = len(plan.subset_of(spec, runs.store(spec)).held_out.tiles())
        expected = plan.PER_RUN + 7.0 + 3.0 * spec.train.amount + 2 * 0.5 * tiles
        assert found.seconds[name] == pytest.approx(expected)
    costs = plan.plan(runs)
    alone, both = (found.wall(costs, runs.specs, slots) for slots in (1, 2))
    assert alone - plan.START_UP - found.warm == pytest.approx(sum(found.seconds.values()))
    assert both - plan.START_UP - found.warm == pytest.approx(sum(found.seconds.values()) / 2)
    slow = found.wall(costs, runs.specs, 2, imports=2.0)
    assert slow - both == pytest.approx(2.0 * plan.IMPORTS)
    assert found.wall(costs, [], 2) == 0.0


def test_rollouts_last_as_long_as_the_longest_of_so_many_recorded_episodes(tmp_path):
    rolled = SWEEP.replace("axes:", "  evaluate: {env: own, episodes: 2, targets: [1.0]}\naxes:")
    runs = read(tmp_path, "{model.width: [8]}", rolled)
    spec = next(iter(runs.specs.values()))
    lengths = [1, 2, 3, 10]
    store = type("Store", (), {"lengths": np.array(lengths)})()
    pairs = [max(pair) for pair in itertools.product(lengths, repeat=2)]
    assert plan.rollout_steps(spec, store) == pytest.approx(np.mean(pairs))
    found = timing_of(spec, runs.store(spec), 0.0)
    assert found.step > 0
    assert found.micro_batches == 1


def test_a_batch_that_does_not_fit_is_tried_in_parts_as_a_run_does(tmp_path, monkeypatch):
    from scaling.training import Training

    runs = read(tmp_path, "{model.width: [8]}", SWEEP.replace("batch: 3", "batch: 5"))
    spec, part = next(iter(runs.specs.values())), Training._part

    def small(self, starts, share, factor):
        if share.stop - share.begin > 2:
            raise torch.OutOfMemoryError("out of memory")
        return part(self, starts, share, factor)

    monkeypatch.setattr(Training, "_part", small)
    assert timing_of(spec, runs.store(spec), 0.0).micro_batches == 4


def test_errors_that_are_not_of_memory_are_not_hidden(tmp_path, monkeypatch):
    from scaling.training import Training

    runs = read(tmp_path, "{model.width: [8]}")
    spec = next(iter(runs.specs.values()))
    monkeypatch.setattr(Training, "update", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        timing_of(spec, runs.store(spec), 0.0)


def test_a_network_without_room_is_a_line_of_the_plan(call, tmp_path):
    sweep(tmp_path, "{model.width: [8, 4000000]}")
    done = call()
    assert done.exit_code == 0, done.output
    assert "mambadm width 4000000 depth 1 context 4 does not fit into memory here; its runs would fail" in done.stdout
    assert done.stdout.count("does not fit") == 2  # and in the table
    runs = read(tmp_path, "{model.width: [4000000]}")
    spec = next(iter(runs.specs.values()))
    with pytest.raises(MemoryError, match="bytes, and"):
        check_room(spec, runs.store(spec))


def test_the_plan_says_how_long_with_how_many_at_a_time(call, tmp_path):
    sweep(tmp_path, "{model.width: [8, 12, 16], seed: [0, 1]}")
    done = call("--cpus", "2")
    assert done.exit_code == 0, done.output
    assert "6 runs, C = " in done.stdout
    assert "6 to do: about " in done.stdout
    assert "on this machine, 2 at a time" in done.stdout
    assert "of 3 shapes of network and batch were tried here" in done.stdout
    assert "1 at a time" in call("--cpus", "2", "--threads", "2").stdout


def test_neighbours_are_at_work_and_gone_afterwards():
    before = {process.pid for process in children()}
    with neighbours.busy(2, 1):
        started = [process for process in children() if process.pid not in before]
        assert len(started) == 2
    assert not any(process.is_running() for process in started)


def children():
    import psutil

    return psutil.Process().children()


def test_progress_needs_no_trial_and_weighs_small_networks_by_their_updates():
    def cost(C: float, updates: int) -> Cost:
        return Cost({}, 1.0, 1, 1, updates, updates, 1.0, C)

    assert plan.proportion(cost(1e6, 200)) == pytest.approx(2 * plan.proportion(cost(1e6, 100)), rel=1e-3)
    assert plan.proportion(cost(1e18, 10)) == pytest.approx(10 * plan.proportion(cost(1e17, 10)), rel=1e-3)
