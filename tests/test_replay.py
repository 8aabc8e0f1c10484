"""Updates that are recorded and played again, as on a GPU, against updates that are called."""

import dataclasses

import pytest
import torch
from company import KINDS, Last, Stopping, assert_rows_equal, company, row_of
from tape import Tape

from scaling import replay, train as training
from scaling.checkpoint import Nobody
from scaling.errors import Interrupted
from scaling.population import Entry, train_together
from scaling.runs import open_store
from scaling.spec import DataSpec, ModelSpec, RunSpec, TrainSpec

RUN = RunSpec(
    model=ModelSpec(width=16, depth=1, context=6, subsequence=2, dropout=0.0, max_timestep=100),
    data=DataSpec(path="data.hdf5", rtg_scale=10.0),
    train=TrainSpec(amount=12.0, batch=6, evaluations=3, warmup=0.5, learning_rate=3e-3),
)


@pytest.fixture
def recording(monkeypatch):
    """Every device records, on tape."""
    monkeypatch.setattr(replay, "can_record", lambda device: True)
    monkeypatch.setattr(replay, "CudaGraph", Tape)
    monkeypatch.setattr(Tape, "made", 0)


def of_kind(kind: str) -> RunSpec:
    return dataclasses.replace(RUN, model=dataclasses.replace(RUN.model, kind=kind, heads=2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_whose_updates_are_replayed_is_the_run_whose_updates_are_called(kind, folder, request):
    spec, store, called, replayed = of_kind(kind), open_store(of_kind(kind), folder), Last(), Last()
    row = training.train(spec, store, keeper=called).row
    request.getfixturevalue("recording")
    again = training.train(spec, store, keeper=replayed).row
    assert Tape.made == 1
    assert_rows_equal(again, row, rel=1e-6)
    ours, theirs = row_of(replayed.state["model"]), row_of(called.state["model"])
    assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


def test_members_whose_updates_are_replayed_are_those_whose_updates_are_called(folder, request):
    specs = [
        dataclasses.replace(spec, train=dataclasses.replace(spec.train, amount=amount))
        for spec, amount in zip(company(3, model__dropout=0.0), (14.0, 9.0, 14.0), strict=True)
    ]

    def rows() -> list[dict]:
        entries = [
            Entry(spec=spec, store=open_store(spec, folder), report=lambda *_: None, keeper=Nobody(), state=None)
            for spec in specs
        ]
        found = dict(train_together(entries))
        return [found[number].row for number in range(len(specs))]

    called = rows()
    request.getfixturevalue("recording")
    for again, row in zip(rows(), called, strict=True):
        assert_rows_equal(again, row)
    assert Tape.made == 2  # once more for those who were left when one had ended


def test_a_state_saved_between_replays_is_gone_on_from(folder, recording):
    store, keeper = open_store(RUN, folder), Stopping(7)
    whole = training.train(RUN, store).row
    with pytest.raises(Interrupted):
        training.train(RUN, store, keeper=keeper)
    rest = training.train(RUN, store, state=keeper.state).row
    assert_rows_equal(rest, whole, rel=1e-6)


def test_parts_of_a_batch_are_called_not_recorded(folder, recording):
    store = open_store(RUN, folder)
    whole = training.train(RUN, store).row
    assert Tape.made == 1
    in_parts = training.train(RUN, store, micro_batches=2).row
    assert Tape.made == 1
    assert_rows_equal({**in_parts, "micro_batches": 1}, whole)


def test_an_update_that_waits_for_the_device_is_refused_by_the_stand_in(recording):
    update = replay.Update(lambda given, numbers: given[0] * float(given[0].sum()), torch.device("cpu"))
    given = [torch.ones(3)]
    for _ in range(replay.WARM_UP):
        update(given, [])
    with pytest.raises(RuntimeError, match="waits for the device"):
        update(given, [])


def test_what_comes_in_as_an_argument_is_new_at_each_replay_and_what_does_not_is_not(recording):
    fixed = [1.0]
    update = replay.Update(lambda given, numbers: given[0] * numbers[0] + fixed[0], torch.device("cpu"))
    for number in range(1, 8):
        fixed[0] = float(number)
        found = update([torch.full((2,), float(number))], [0.5])
    assert torch.equal(found, torch.full((2,), 7 * 0.5 + replay.WARM_UP + 1))
