"""Python's collector in a process that serves many runs."""

import gc
import weakref

from scaling import garbage


class Circle:
    def __init__(self) -> None:
        self.itself = self


def is_watched(thing: object) -> bool:
    return any(seen is thing for seen in gc.get_objects())


def test_what_is_in_use_between_runs_is_gone_through_once():
    kept = Circle()
    assert is_watched(kept)
    garbage.collect()
    assert not is_watched(kept)
    assert is_watched(Circle())


def test_what_a_run_leaves_in_circles_goes():
    garbage.collect()
    left = weakref.ref(Circle())
    assert left() is not None
    garbage.collect()
    assert left() is None


def test_after_imports_the_collector_is_back_and_leaves_them_out():
    with garbage.paused():
        assert not gc.isenabled()
        imported = Circle()
    assert gc.isenabled()
    assert not is_watched(imported)
