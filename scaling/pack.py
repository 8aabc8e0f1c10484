"""An attempt at several runs of one shape as one program, each with its own claim, checkpoints and row."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from scaling.attempt import Alone, attempt, carry_out, is_of_process, is_out_of_memory, reason
from scaling.errors import Interrupted, UserError
from scaling.held import Held, Stop
from scaling.order import Order, failure, prepare_process, store_of
from scaling.population import Entry, train_together
from scaling.root import open_root
from scaling.spec import from_dict
from scaling.train import Outcome, forget_company

Told = Callable[[str, int, float], None]
"""Called with a run, the number of updates done and the held-out loss, at every point of a curve."""


def attempt_together(orders: Sequence[Order], report: Told, stopping: Callable[[], bool]) -> None:
    """Do those of the runs that nobody else does or did.

    Where they cannot be trained together, as for want of memory, they are split, down to runs alone.
    """
    if len(orders) == 1:
        attempt(orders[0], Alone(), partial(report, orders[0].run_id), stopping)
        return
    root, stop = open_root(orders[0].root), Stop(stopping)
    with ExitStack() as until_the_end:
        all_held = [Held(root, order, stop, partial(report, order.run_id)) for order in orders]
        for held in all_held:
            until_the_end.enter_context(held)
        stop.ask()
        try:
            _carry_out([held for held in all_held if not stop.asked and held.take()])
        except Interrupted:
            return


def _carry_out(taken: list[Held]) -> None:
    if len(taken) <= 1:
        for held in taken:
            carry_out(held, Alone())
        return
    left = dict(enumerate(taken))
    try:
        _train(left)
    except (Interrupted, OSError):  # of the root, after long patience
        raise
    except Exception as error:
        if is_of_process(error):
            raise ChildProcessError(f"this process can train no more: {reason(error)}") from error
    if left:  # outside of the handler, which holds on to the memory
        rest = list(left.values())
        middle = len(rest) // 2
        for half in (rest[:middle], rest[middle:]):
            _carry_out(half)


def _train(left: dict[int, Held]) -> None:
    """Train all together; who has ended is taken out."""
    prepare_process(left[0].order)
    forget_company()
    entries: dict[int, Entry] = {}
    for number, held in list(left.items()):
        try:
            store = store_of(held.order)
        except UserError as error:
            left.pop(number).finish(failure(held.order, str(error)))
            continue
        spec, state = from_dict(held.order.spec), held.saved()
        entries[number] = Entry(spec=spec, store=store, report=held.report, keeper=held, state=state)
    numbers = list(entries)
    for at, ended in train_together(list(entries.values())) if entries else ():
        if isinstance(ended, Exception) and (is_of_process(ended) or is_out_of_memory(ended)):
            raise ended  # of the company, not of the run
        held = left.pop(numbers[at])
        if isinstance(ended, Outcome):
            held.finish(ended)
        elif not isinstance(ended, Interrupted):
            held.finish(failure(held.order, reason(ended)))
