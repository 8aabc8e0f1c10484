"""Wall times on a device that may lag behind the program that drives it."""

import statistics
import time
from collections.abc import Callable

import torch


def settle(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Seconds from an idle device to an idle device."""
    settle(device)
    begin = time.perf_counter()
    call()
    settle(device)
    return time.perf_counter() - begin


def median_seconds(call: Callable[[], object], device: torch.device, budget: float, least: int = 2) -> float:
    """Median seconds of a call, from about ``budget`` seconds of calls and no fewer than ``least``."""
    took: list[float] = []
    while len(took) < least or sum(took) < budget:
        took.append(seconds_of(call, device))
    return statistics.median(took)
