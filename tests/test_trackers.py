"""Whoever watches a sweep disturbs nobody."""

import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from scaling import trackers
from scaling.root import open_root


class Trial:
    """As Tune tells callbacks of one."""

    config = {"run_ids": ["a"]}  # noqa: RUF012


def points(folder: Path) -> list[tuple[int, float]]:
    """The curve in the event files of a folder."""
    found = []
    for path in folder.glob("events*"):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + length])
            found += [(event.step, value.simple_value) for value in event.summary.value if value.tag == "held-out_loss"]
            place += 16 + length
    return sorted(found)


def test_a_curve_lies_beside_the_row_and_its_trouble_disturbs_nobody(tmp_path, monkeypatch):
    board = trackers.TensorBoard(open_root(tmp_path), {"a": "a label"})

    def point(update: int) -> None:
        board.on_trial_result(0, [], Trial, {"run_id": "a", "update": update, "loss": 1.0 / update})

    def fail(writer: RecordWriter) -> None:
        raise OSError(28, "No space left on device")

    point(1)
    with monkeypatch.context() as full:
        full.setattr(RecordWriter, "flush", fail)
        full.setattr(trackers, "FLUSH", 0.0)
        for update in range(2, 40):  # more than would fit into a queue
            point(update)
        board.on_trial_complete(0, [], Trial)
    point(50)
    board.on_trial_complete(0, [], Trial)
    assert (1, 1.0) in points(tmp_path / "a")
    assert points(tmp_path / "a")[-1] == (50, pytest.approx(0.02))
