"""Have the runs of a sweep done, with Ray or without."""

import errno
from collections.abc import Callable

import torch
from rich.console import Console

from scaling import manifest, plan, serial
from scaling.driver import Replaces, Watcher, manifest_of, orders_of
from scaling.errors import UserError
from scaling.interrupts import Interrupts
from scaling.order import Order
from scaling.packing import packs_of
from scaling.packs import Packs
from scaling.progress import SweepProgress
from scaling.resources import CLIENT, LOCAL, NO_RAY, Resources, Settings, available_cpus
from scaling.root import Root, check_writable
from scaling.runs import Runs
from scaling.work import Work


def launch(
    runs: Runs,
    root: Root,
    replaces: Replaces,
    digest: str,
    settings: Settings,
    interrupts: Interrupts,
    await_ray: Callable[[], None],
) -> str | None:
    """Have runs done; why the sweep was given up, if it was.

    Args:
        runs: the sweep.
        root: where rows go.
        replaces: the runs to be done.
        digest: of the sweep's file.
        settings: how.
        interrupts: asks to stop.
        await_ray: waits for a Ray that was started meanwhile.

    Raises:
        UserError: a run does not fit its dataset, the root cannot be written, or Ray cannot be used.

    """
    costs = plan.plan(runs)
    _check_root(root, runs.sweep.name, digest)
    manifest.write(root, manifest_of(runs, costs, digest))
    orders = orders_of(runs, costs, root, replaces, settings.habits)
    await_ray()
    interrupts.keep_listening()
    packs = _packs(runs, costs, list(orders), settings)
    work = Work(root, list(orders), replaces, settings.wait, settings.is_sound, packs)
    todo = {name: plan.proportion(costs[name]) * packs.share(name) for name in orders}
    updates = {name: costs[name].updates for name in orders}
    with SweepProgress(Console(stderr=True), todo, updates, len(runs.specs) - len(todo)) as shown:
        if settings.resources.address == NO_RAY:
            serial.run(work, orders, shown, interrupts)
        else:
            _with_ray(runs, root, work, orders, settings, shown, interrupts)
    return work.given_up


def _packs(runs: Runs, costs: plan.Costs, names: list[str], settings: Settings) -> Packs:
    """Which runs are trained together; where that is found by trying, this machine must be the one that trains."""
    wanted = settings.resources
    if wanted.pack is None and not _may_try(settings):
        return Packs()
    before = torch.get_num_threads()
    torch.set_num_threads(wanted.threads)
    try:
        return packs_of(runs, costs, names, _slots(wanted), wanted.pack)
    finally:
        torch.set_num_threads(before)


def _may_try(settings: Settings) -> bool:
    """Whether packs are to be found by trying.

    Not where others that share the runs could be left with none, nor for Weights & Biases and MLflow, which take one
    run at a time, nor where runs are given several processes or another kind of device than this process has.
    """
    wanted = settings.resources
    if wanted.workers > 1:
        return False
    alike = wanted.address == NO_RAY or (wanted.address == LOCAL and (wanted.gpus > 0) == torch.cuda.is_available())
    return alike and settings.wait and not {"wandb", "mlflow"} & set(settings.trackers)


def _slots(wanted: Resources) -> int:
    """Runs or packs at a time on this machine."""
    cores, gpus = wanted.threads * wanted.workers, wanted.gpus * wanted.workers
    slots = 1 if wanted.address == NO_RAY else max(1, (wanted.cpus or available_cpus()) // cores)
    if gpus:
        slots = max(1, min(slots, int(torch.cuda.device_count() / gpus)))
    return min(slots, wanted.max_concurrent or slots)


def _with_ray(
    runs: Runs,
    root: Root,
    work: Work,
    orders: dict[str, Order],
    settings: Settings,
    shown: Watcher,
    interrupts: Interrupts,
) -> None:
    from scaling import remote, sweep, trackers  # import Ray, which is not needed everywhere

    labels = {name: runs.label(name) for name in orders}
    watching = trackers.Wanted(settings.trackers, root, runs.sweep.name, labels)
    if settings.resources.address.startswith(CLIENT):
        remote.run(work, orders, settings.resources, shown, watching, interrupts)
    else:
        sweep.run(work, orders, settings.resources, shown, watching.callbacks(), interrupts)


def _check_root(root: Root, sweep: str, digest: str) -> None:
    """Refuse a root that cannot be written.

    Raises:
        UserError: it never could be.
        OSError: this sweep was begun in it, so that the trouble may pass.

    """
    try:
        check_writable(root)
    except UserError as error:
        if manifest.read(root, sweep, digest) is not None:
            raise OSError(errno.EIO, str(error), root.uri) from error
        raise
