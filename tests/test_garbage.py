"""Python's collector in a process that serves many runs."""

import gc
import weakref

import torch

from scaling import garbage


class Circle:
    def __init__(self) -> None:
        self.itself = self


def test_what_was_imported_is_gone_through_once():
    garbage.collect()
    before = gc.get_freeze_count()
    assert not any(seen is torch.__dict__ for seen in gc.get_objects())
    kept = [[] for _ in range(1000)]
    garbage.collect()
    assert gc.get_freeze_count() <= before  # what comes later stays under watch
    assert any(seen is kept[0] for seen in gc.get_objects())


def test_what_a_run_leaves_in_circles_goes():
    garbage.collect()
    left = weakref.ref(Circle())
    assert left() is not None
    garbage.collect()
    assert left() is None
