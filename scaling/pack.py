"""An attempt at several runs of one shape as one program, each with its own claim, checkpoints and row."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from scaling.attempt import PackJob, Team, attempt, carry_out, is_of_process, is_out_of_memory, reason
from scaling.errors import Interrupted, Parted, TeamBroken, UserError
from scaling.held import Held, Stop
from scaling.order import Order, failure, prepare_process, store_of
from scaling.root import open_root
from scaling.train import Outcome

Told = Callable[[str, int, float], None]
"""Called with a run, the number of updates done and the held-out loss, at every point of a curve."""


def attempt_together(orders: Sequence[Order], team: Team, report: Told, stopping: Callable[[], bool]) -> None:
    """Do those of the runs that nobody else does or did, by all processes of a team.

    Where they cannot be trained together, as for want of memory, they are split, down to runs alone.
    """
    if len(orders) == 1:
        attempt(orders[0], team, partial(report, orders[0].run_id), stopping)
        return
    root, stop = open_root(orders[0].root), Stop(stopping)
    with ExitStack() as until_the_end:
        all_held = [Held(root, order, stop, partial(report, order.run_id)) for order in orders]
        for held in all_held:
            until_the_end.enter_context(held)
        stop.ask()
        try:
            _carry_out([held for held in all_held if not stop.asked and held.take()], team)
        except Interrupted:
            return


def _carry_out(taken: list[Held], team: Team) -> None:
    if len(taken) <= 1:
        for held in taken:
            carry_out(held, team)
        return
    left, whole = dict(enumerate(taken)), False
    try:
        _train(left, team)
    except (Interrupted, TeamBroken, OSError):  # the last of the root, after long patience
        raise
    except Parted:
        whole = True
    except Exception as error:
        if is_of_process(error):
            raise ChildProcessError(f"this process can train no more: {reason(error)}") from error
    if left:  # outside of the handler, which holds on to the memory
        rest = list(left.values())
        middle = 0 if whole else len(rest) // 2
        for part in (rest[:middle], rest[middle:]):
            _carry_out(part, team)


def _train(left: dict[int, Held], team: Team) -> None:
    """Train all together; who has ended is taken out."""
    prepare_process(left[0].order)
    for number, held in list(left.items()):
        try:
            store_of(held.order)
        except UserError as error:
            left.pop(number).finish(failure(held.order, str(error)))
    numbers, holding = list(left), list(left.values())
    job = PackJob(orders=[held.order for held in holding], states=[held.saved() for held in holding])
    for at, ended in team.train_pack(job, [held.report for held in holding], holding) if holding else ():
        if isinstance(ended, Exception) and (is_of_process(ended) or is_out_of_memory(ended)):
            raise ended  # of the company, not of the run
        held = left.pop(numbers[at])
        if isinstance(ended, Outcome):
            held.finish(ended)
        elif not isinstance(ended, Interrupted):
            held.finish(failure(held.order, reason(ended)))
