"""Runs trained together against each alone: parameters, rows, leaving early, interruptions, splitting, choosing."""

import dataclasses
import itertools
import os
from pathlib import Path

import pytest
import torch
from company import KINDS, RUN, Last, Stopping, assert_rows_equal, changed, company, row_of

from scaling import grid, plan, population, results, train as training
from scaling.attempt import Alone
from scaling.batches import Resident
from scaling.checkpoint import Nobody
from scaling.claims import Claim
from scaling.errors import Diverged, Interrupted, Parted, TeamBroken, UserError
from scaling.held import Held
from scaling.order import Order
from scaling.pack import attempt_together
from scaling.packing import packs_of
from scaling.packs import Packs
from scaling.population import Entry, train_together
from scaling.root import open_root
from scaling.runs import identify, open_store
from scaling.spec import DataSpec, EvaluateSpec, RunSpec, TrainSpec, to_dict
from scaling.train import Outcome, identity
from scaling.work import Work


def entry_of(spec: RunSpec, folder: Path, keeper=None, state=None) -> Entry:
    return Entry(
        spec=spec, store=open_store(spec, folder), report=lambda *_: None, keeper=keeper or Nobody(), state=state
    )


def together(specs: list[RunSpec], folder: Path, keepers=None, states=None) -> list:
    keepers, states = keepers or [None] * len(specs), states or [None] * len(specs)
    entries = [entry_of(*each) for each in zip(specs, [folder] * len(specs), keepers, states, strict=True)]
    found = dict(train_together(entries))
    return [found[number] for number in range(len(specs))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count", "dropout"), [(1, 0.1), (3, 0.1), (3, 0.0), (8, 0.1)])
def test_a_population_is_so_many_runs_alone(folder, kind, count, dropout):
    specs = company(count, model__kind=kind, model__dropout=dropout)
    keepers, alone = [Last() for _ in specs], [Last() for _ in specs]
    outcomes = together(specs, folder, keepers)
    for spec, outcome, keeper, other in zip(specs, outcomes, keepers, alone, strict=True):
        row = training.train(spec, open_store(spec, folder), keeper=other).row
        ours, theirs = row_of(keeper.state["model"]), row_of(other.state["model"])
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
        assert_rows_equal(outcome.row, row)
        assert outcome.row["packed"] == count


@pytest.mark.parametrize(
    "changes",
    [
        {"model__fusion": "learned"},
        {"model__fusion": "gate", "model__overlap": 1},
        {"model__local_weights": "per_window", "train__precision": "bf16"},
        {"model__stem": "atari", "model__init": "gpt2"},
        {"data__action_noise": 0.1, "train__budget": "convergence", "train__patience": 1},
    ],
)
def test_every_choice_of_network_and_training_can_be_had_together(folder, changes):
    specs, keeper = company(2, **changes), Stopping(20)
    stopped, outcome = together(specs, folder, [keeper, None])
    assert isinstance(stopped, Interrupted)
    rel = 2**-7 if "train__precision" in changes else 1e-5  # bf16 has eight bits, and both round differently
    assert_rows_equal(outcome.row, training.train(specs[1], open_store(specs[1], folder)).row, rel)
    store = open_store(specs[0], folder)
    rest = training.train(specs[0], store, state=keeper.state).row
    assert_rows_equal(rest, training.train(specs[0], store).row, rel)


def test_discrete_actions_and_rollouts_are_those_of_runs_alone(folder):
    base = RunSpec(
        model=changed(RUN, model__context=5).model,
        data=DataSpec(kind="tmaze", horizon=5, episodes=60, starts="episode", rtg_scale=1.0),
        train=TrainSpec(amount=20.0, batch=6, evaluations=2),
        evaluate=EvaluateSpec(env="own", episodes=3, targets=(1.0,)),
    )
    specs = [changed(base, seed=seed, data__fraction=1 / (1 + seed)) for seed in range(2)]
    for spec, outcome in zip(specs, together(specs, folder), strict=True):
        alone = training.train(spec, open_store(spec, folder))
        assert_rows_equal(outcome.row, alone.row)
        assert outcome.episodes == alone.episodes


@pytest.mark.parametrize(("most", "companies"), [(6, [[0, 1], [3, 4], [5]]), (1, [[0], [1], [3], [4], [5]])])
def test_no_more_episodes_than_have_room_are_played_side_by_side(most, companies, monkeypatch):
    monkeypatch.setattr(population, "EPISODES", most)
    asked = dict.fromkeys((0, 1, 3, 4, 5), EvaluateSpec(env="own", episodes=3, targets=(1.0,)))
    assert population._companies(list(asked), asked) == companies


def test_members_of_unequal_length_leave_when_they_end(folder):
    specs = [changed(RUN, seed=seed, train__amount=amount) for seed, amount in enumerate((30.0, 9.0, 17.0))]
    entries = [entry_of(spec, folder) for spec in specs]
    ended = [(number, outcome.row) for number, outcome in train_together(entries)]
    assert [number for number, _ in ended] == [1, 2, 0]
    for number, row in ended:
        assert_rows_equal(row, training.train(specs[number], open_store(specs[number], folder)).row)


def test_a_member_that_diverges_leaves_and_the_others_are_what_they_would_be(folder):
    specs = company(3)
    specs[1] = changed(specs[1], train__learning_rate=1e30)
    good, bad, other = together(specs, folder)
    assert isinstance(bad, Diverged)
    assert str(bad).startswith("diverged: training or held-out loss is not finite after ")
    for spec, outcome in ((specs[0], good), (specs[2], other)):
        assert_rows_equal(outcome.row, training.train(spec, open_store(spec, folder)).row)


def test_a_member_that_does_not_fit_its_data_is_told_and_the_others_go_on(folder):
    specs = [RUN, changed(RUN, seed=1, data__fraction=0.001)]
    good, bad = together(specs, folder)
    assert isinstance(good, Outcome)
    assert isinstance(bad, UserError)


def test_an_interrupted_member_goes_on_in_another_population_or_alone(folder):
    specs = company(3)
    keepers = [Stopping(13), None, Stopping(27)]
    stopped = together(specs, folder, keepers)
    assert [type(ended) for ended in stopped] == [Interrupted, Outcome, Interrupted]
    states = [keepers[0].state, keepers[2].state]
    again = together([specs[0], specs[2]], folder, states=states)
    for spec, state, outcome in zip((specs[0], specs[2]), states, again, strict=True):
        store = open_store(spec, folder)
        whole, rest = training.train(spec, store).row, training.train(spec, store, state=state).row
        assert outcome.row["resumes"] == rest["resumes"] == 1
        assert_rows_equal(outcome.row, whole)
        assert_rows_equal(rest, whole)


def test_a_run_interrupted_alone_goes_on_in_a_population(folder):
    specs, keeper = company(2), Stopping(20)
    with pytest.raises(Interrupted):
        training.train(specs[0], open_store(specs[0], folder), keeper=keeper)
    outcomes = together(specs, folder, states=[keeper.state, None])
    for spec, outcome in zip(specs, outcomes, strict=True):
        assert_rows_equal(outcome.row, training.train(spec, open_store(spec, folder)).row)


def test_shapes_are_not_mixed(folder):
    with pytest.raises(ValueError, match="different shapes cannot be trained together"):
        together([RUN, changed(RUN, model__width=24)], folder)


def order_of(folder: Path, spec: RunSpec, **changes: object) -> Order:
    digest = open_store(spec, folder).digest
    values = {
        "run_id": identity(spec, digest)["run_id"],
        "spec": to_dict(spec),
        "digest": digest,
        "folder": str(folder),
        "root": str(folder / "runs"),
        "cache": os.environ["SCALING_CACHE"],
        "threads": 1,
        "checkpoint_seconds": 1e9,
        "keep_checkpoint": False,
    }
    return Order(**values | changes)


def never() -> bool:
    return False


def written(orders: list[Order]) -> list[dict]:
    return [results.read_row(open_root(order.root), order.run_id) for order in orders]


def test_each_of_a_pack_has_its_row_and_nothing_else_is_left(folder):
    orders = [order_of(folder, spec) for spec in [*company(2), changed(RUN, train__learning_rate=1e30)]]
    told = []
    attempt_together(orders, Alone(), lambda *point: told.append(point), never)
    rows = written(orders)
    assert [row["status"] for row in rows] == ["done", "done", "failed"]
    assert [row["packed"] for row in rows] == [3, 3, None]
    for order in orders:
        assert [path.name for path in (Path(order.root) / order.run_id).iterdir()] == ["row.parquet"]
    assert {point[0] for point in told} == {order.run_id for order in orders[:2]}


def test_what_others_hold_or_have_done_is_left_to_them(folder):
    orders = [order_of(folder, spec) for spec in company(4)]
    attempt_together(orders[:1], Alone(), lambda *_: None, never)
    done = results.read_row(open_root(orders[0].root), orders[0].run_id)["finished"]
    with Claim(open_root(orders[1].root), orders[1].run_id) as other:
        assert other.take()
        attempt_together(orders, Alone(), lambda *_: None, never)
    rows = written(orders)
    assert rows[0]["finished"] == done
    assert rows[1] is None
    assert [row["packed"] for row in rows[2:]] == [2, 2]


def test_what_does_not_fit_into_memory_together_is_split(folder, monkeypatch):
    orders = [order_of(folder, spec) for spec in company(4)]
    tried = []
    original = population.train_together

    def hungry(entries):
        tried.append(len(entries))
        if len(entries) > 2:
            raise torch.OutOfMemoryError("no room")
        return original(entries)

    monkeypatch.setattr("scaling.attempt.train_together", hungry)
    attempt_together(orders, Alone(), lambda *_: None, never)
    assert tried == [4, 2, 2]
    assert [row["status"] for row in written(orders)] == ["done"] * 4
    assert [row["packed"] for row in written(orders)] == [2] * 4


def test_members_may_differ_in_whether_their_data_are_on_the_device(folder, monkeypatch):
    specs, turns = company(3), itertools.count()

    def residents(subset, accelerator, known):
        stores = (subset.training.store, subset.held_out.store)
        return tuple(Resident(store, accelerator.device) for store in stores) if next(turns) == 1 else (None, None)

    monkeypatch.setattr(population, "residents", residents)
    for spec, outcome in zip(specs, together(specs, folder), strict=True):
        assert_rows_equal(outcome.row, training.train(spec, open_store(spec, folder)).row)


class Asked(Last):
    """Saves a state and, if it is to be, ends the run by that."""

    def __init__(self, ends: bool) -> None:
        self.ends, self.saved = ends, 0

    def wants(self) -> bool:
        return self.ends

    def keep(self, state) -> None:
        self.saved += 1
        if self.ends:
            raise Interrupted


def test_one_that_is_interrupted_where_processes_share_the_runs_has_all_states_saved(folder):
    keepers = [Asked(False), Asked(True), Asked(False)]
    entries = [entry_of(spec, folder, keeper) for spec, keeper in zip(company(3), keepers, strict=True)]
    with population.rehearsal(entries) as shared:
        shared.update()
        shared.is_shared = True
        ended = shared._interruptions()
        at, error = next(ended)
        assert (at, type(error)) == (1, Interrupted)
        with pytest.raises(Parted):
            next(ended)
    assert [keeper.saved for keeper in keepers] == [1, 1, 1]


class PartsOnce(Alone):
    """A team of which one run is interrupted at once, and the rest of whose pack is whole later."""

    def __init__(self) -> None:
        self.packs: list[int] = []

    def train_pack(self, job, reports, keepers):
        self.packs.append(len(job.orders))
        if len(self.packs) == 1:
            yield 0, Interrupted()
            raise Parted
        yield from super().train_pack(job, reports, keepers)


def test_the_others_go_on_together_when_one_of_a_shared_pack_was_interrupted(folder):
    orders, team = [order_of(folder, spec) for spec in company(3)], PartsOnce()
    attempt_together(orders, team, lambda *_: None, never)
    assert team.packs == [3, 2]
    assert [row and row["packed"] for row in written(orders)] == [None, 2, 2]


def test_a_team_that_broke_is_not_tried_again_in_parts(folder):
    class Broken(Alone):
        def train_pack(self, job, reports, keepers):
            raise TeamBroken("a process died")
            yield

    with pytest.raises(TeamBroken):
        attempt_together([order_of(folder, spec) for spec in company(2)], Broken(), lambda *_: None, never)


def test_a_run_whose_rollouts_fail_costs_the_others_nothing(folder, monkeypatch):
    orders, original = [order_of(folder, spec) for spec in company(3)], population._Member.outcome

    def fails(self, played):
        if self.number == 1:
            raise RuntimeError("the world ended")
        return original(self, played)

    monkeypatch.setattr(population._Member, "outcome", fails)
    attempt_together(orders, Alone(), lambda *_: None, never)
    rows = written(orders)
    assert [row["status"] for row in rows] == ["done", "failed", "done"]
    assert rows[1]["error"].startswith("RuntimeError: the world ended (")
    assert [row["packed"] for row in rows] == [3, None, 3]


def test_memory_that_company_takes_away_from_rollouts_splits_it(folder, monkeypatch):
    orders = [order_of(folder, spec) for spec in company(2)]

    def hungry(self, played):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(population._Member, "outcome", hungry)
    attempt_together(orders, Alone(), lambda *_: None, never)
    assert [row["packed"] for row in written(orders)] == [1, 1]


def test_a_root_in_trouble_for_too_long_loses_the_attempt_at_a_pack(folder, monkeypatch):
    orders = [order_of(folder, spec) for spec in company(2)]

    def fails(root, row):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("scaling.held.PATIENCE", 0.0)
    monkeypatch.setattr(results, "write_row", fails)
    with pytest.raises(OSError, match="Read-only"):
        attempt_together(orders, Alone(), lambda *_: None, never)


def test_a_gpu_that_faults_ends_the_process_not_the_runs(folder, monkeypatch):
    orders = [order_of(folder, spec) for spec in company(2)]

    def fails(self, played):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(population._Member, "outcome", fails)
    with pytest.raises(ChildProcessError, match="this process can train no more"):
        attempt_together(orders, Alone(), lambda *_: None, never)
    assert written(orders) == [None, None]


def test_a_pack_that_is_told_to_stop_saves_each_state_and_goes_on_later(folder):
    orders = [order_of(folder, spec) for spec in company(2)]
    asked = []

    def stop_after_a_point(*_: object) -> None:
        asked.append(True)

    original = Held.wants
    with pytest.MonkeyPatch.context() as patch:  # asked at every update, not once a second
        patch.setattr(Held, "wants", lambda self: self.stop.ask() or original(self))
        attempt_together(orders, Alone(), stop_after_a_point, lambda: bool(asked))
    for order in orders:
        assert [path.name for path in (Path(order.root) / order.run_id).iterdir()] == ["checkpoint.pt"]
    attempt_together(orders, Alone(), lambda *_: None, never)
    for order, spec in zip(orders, company(2), strict=True):
        row = results.read_row(open_root(order.root), order.run_id)
        assert row["resumes"] == 1
        assert_rows_equal(row, training.train(spec, open_store(spec, folder)).row)


def test_a_dataset_that_has_changed_fails_its_run_alone(folder):
    orders = [order_of(folder, spec) for spec in company(3)]
    changed_id = identity(company(1)[0], "other")["run_id"]
    orders[0] = dataclasses.replace(orders[0], digest="other", run_id=changed_id)
    attempt_together(orders, Alone(), lambda *_: None, never)
    rows = written(orders)
    assert [row["status"] for row in rows] == ["failed", "done", "done"]
    assert "has changed since the sweep began" in rows[0]["error"]


def sweep_of(folder: Path, axes: str) -> grid.Sweep:
    path = folder / "own.yaml"
    path.write_text(
        f"""
name: own
base:
  model: {{width: 16, depth: 1, context: 4, subsequence: 2}}
  data: {{path: data.hdf5}}
  train: {{amount: 3000, batch: 2, evaluations: 2}}
axes: {axes}
"""
    )
    return grid.read(path)


@pytest.mark.parametrize(("slots", "largest"), [(1, 6), (2, 3), (6, 1)])
def test_packs_leave_no_process_idle_and_are_only_of_one_shape(folder, monkeypatch, slots, largest):
    monkeypatch.setattr("scaling.packing.seconds_per_update", lambda specs, store: 1e-3)
    runs = identify(sweep_of(folder, "{model.width: [16, 32], seed: [0, 1, 2, 3, 4, 5]}"))
    packs = packs_of(runs, plan.plan(runs), list(runs.specs), slots, None)
    work = Work(open_root(folder / "runs"), list(runs.specs), dict.fromkeys(runs.specs), wait=True, packs=packs)
    taken = []
    while pack := work.next_pack():
        assert len({runs.specs[name].model.width for name in pack}) == 1
        taken += pack
        assert len(pack) <= largest
        assert packs.size(pack[0]) == largest
    assert sorted(taken) == sorted(runs.specs)


@pytest.mark.parametrize(
    ("seconds", "size", "share"),
    [
        ({1: 1.0e-3, 2: 2.1e-3, 4: 4.2e-3}, 1, 1.0),
        ({1: 1.0e-3, 2: 2.1e-3, 4: 2.8e-3, 6: 2.4e-3}, 6, 0.4),  # two cost more than they bring
        ({1: 1.0e-3, 2: 1.5e-3, 4: 2.0e-3, 6: 3.9e-3}, 4, 0.5),
        ({1: 0.2}, 1, 1.0),
    ],
)
def test_no_packing_is_chosen_that_was_seen_to_be_slower(folder, monkeypatch, seconds, size, share):
    monkeypatch.setattr("scaling.packing.seconds_per_update", lambda specs, store: seconds[len(specs)])
    monkeypatch.setattr("scaling.packing._room", lambda *_: 100)
    runs = identify(sweep_of(folder, "{seed: [0, 1, 2, 3, 4, 5]}"))
    packs = packs_of(runs, plan.plan(runs), list(runs.specs), 1, None)
    name = next(iter(runs.specs))
    assert packs.size(name) == size
    assert packs.share(name) == pytest.approx(share)


def test_a_gain_that_is_not_seen_twice_is_none(folder, monkeypatch):
    alone = iter([1.0e-3, 0.4e-3])  # the machine was busy with something else at first
    monkeypatch.setattr(
        "scaling.packing.seconds_per_update", lambda specs, store: next(alone) if len(specs) == 1 else 1.0e-3
    )
    monkeypatch.setattr("scaling.packing._room", lambda *_: 100)
    runs = identify(sweep_of(folder, "{seed: [0, 1]}"))
    packs = packs_of(runs, plan.plan(runs), list(runs.specs), 1, None)
    assert packs.size(next(iter(runs.specs))) == 1


@pytest.mark.parametrize("tried", [1, 2, 4])
def test_a_trial_that_comes_to_nothing_leaves_what_was_tried_before(folder, monkeypatch, tried):
    def seconds(specs, store):
        if len(specs) >= tried:
            raise torch.OutOfMemoryError("no room")
        return 1e-3

    monkeypatch.setattr("scaling.packing.seconds_per_update", seconds)
    runs = identify(sweep_of(folder, "{seed: [0, 1, 2, 3, 4, 5]}"))
    packs = packs_of(runs, plan.plan(runs), list(runs.specs), 1, None)
    assert packs.size(next(iter(runs.specs))) == max(1, tried // 2)


def test_short_runs_are_not_tried_but_trained(folder, monkeypatch):
    tried = []
    monkeypatch.setattr(
        "scaling.packing._tried", lambda runs, name, *_: tried.append(runs.specs[name].model.width) or (1, 1.0)
    )
    runs = identify(sweep_of(folder, "{'model.width, train.amount': [[32, 500], [16, 2]], seed: [0, 1, 2, 3, 4, 5]}"))
    packs_of(runs, plan.plan(runs), list(runs.specs), 2, None)
    assert tried == [32]


def test_a_network_that_memory_cannot_hold_is_not_tried(folder):
    runs = identify(sweep_of(folder, "{model.width: [4000000], seed: [0, 1]}"))
    packs = packs_of(runs, plan.plan(runs), list(runs.specs), 1, None)
    assert packs.size(next(iter(runs.specs))) == 1


def test_the_last_run_of_a_sweep_need_not_have_company(folder):
    runs = identify(sweep_of(folder, "{seed: [0, 1]}"))
    name = next(iter(runs.specs))
    assert packs_of(runs, plan.plan(runs), [name], 1, 2).size(name) == 2


def test_a_pack_of_runs_without_a_common_shape_is_refused(folder):
    runs = identify(sweep_of(folder, "{model.width: [16, 32]}"))
    with pytest.raises(UserError, match=r"--pack 2: no two of the 2 runs of the sweep have the shape in common"):
        packs_of(runs, plan.plan(runs), list(runs.specs), 1, 2)


def test_runs_whose_process_died_are_alone_from_then_on(folder):
    packs = Packs(dict.fromkeys("abcd", "shape"), {"shape": 3})
    work = Work(open_root(folder / "runs"), list("abcd"), dict.fromkeys("abcd"), wait=True, packs=packs)
    first = work.next_pack()
    assert first == ["a", "b", "c"]
    work.separate(first)
    for name in first:
        work.came_back(name)
    assert [work.next_pack() for _ in range(5)] == [["a"], ["b"], ["c"], ["d"], []]
