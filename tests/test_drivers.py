"""What drivers share: signals, Ray on the loopback, trackers."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

from scaling import local_ray, results, trackers
from scaling.errors import UserError
from scaling.interrupts import Interrupts
from scaling.root import open_root
from scaling.trackers import TensorBoard, Wanted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_first_signal_asks_and_handlers_are_given_back(number):
    before = signal.getsignal(number)
    with Interrupts() as interrupts:
        os.kill(os.getpid(), number)
        assert interrupts.asked
    assert signal.getsignal(number) == before


def test_only_a_second_interrupt_from_the_keyboard_stops_at_once():
    with Interrupts() as interrupts:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert interrupts.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_library_that_takes_the_signals_does_not_keep_them():
    with Interrupts() as interrupts:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        interrupts.keep_listening()
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.asked


LISTENING = """
import os, ray
from pathlib import Path
from scaling.local_ray import local_ray, starting_ray
with START as ready:
    ready and ready()
    ray.get(ray.remote(lambda: os.getpid()).remote())
    kin = {os.getpid()}
    parents = {int(p.name): int((p / "stat").read_text().rpartition(")")[2].split()[1])
               for p in Path("/proc").iterdir() if p.name.isdigit()}
    while more := {pid for pid, parent in parents.items() if parent in kin} - kin:
        kin |= more
    sockets = set()
    for pid in kin:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(fd)
            except FileNotFoundError:
                continue
            if target.startswith("socket:["):
                sockets.add(target[8:-1])
    heard = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in sockets:
                heard.append(words[1].partition(":")[0])
    print(*heard)
"""


READY = """
import os, time
from scaling import sweep
from scaling.local_ray import local_ray
import psutil, ray
from ray.tune.execution.class_cache import _ActorClassCache

class Process:
    def number(self):
        return os.getpid()

def family():
    told = {}
    for child in psutil.Process().children(recursive=True):
        try:
            told[child.pid] = " ".join(child.cmdline())
        except psutil.Error:
            continue
    return told

with local_ray(1):
    while not (ready := {number for number, command in family().items() if command.startswith("ray::IDLE")}):
        time.sleep(0.1)
    trial = _ActorClassCache().get(Process).options(num_cpus=1).remote()
    print(ray.get(trial.number.remote()) in ready, any("monitor.py" in command for command in family().values()))
"""


def test_trials_begin_in_processes_that_ray_has_ready_and_nobody_monitors():
    done = subprocess.run([sys.executable, "-c", READY], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "False"]


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="looks at open ports as Linux tells them")
@pytest.mark.parametrize("start", ["local_ray(1)", "starting_ray(1)"])
def test_a_ray_of_this_machine_alone_listens_on_the_loopback_alone(start):
    script = LISTENING.replace("START", start)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    heard = done.stdout.split()
    assert len(heard) >= 4
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert set(heard) <= loopback


def test_what_takes_calls_and_is_no_ray_is_given_up(monkeypatch):
    monkeypatch.setattr(local_ray, "DEADLINE", 0.5)
    monkeypatch.setattr(local_ray.ray, "init", lambda **options: threading.Event().wait(5.0))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        said = f"what listens at {address} did not answer as a Ray within"
        with pytest.raises(UserError, match=said), local_ray.running_ray(address):
            pass


def test_what_a_ray_refuses_is_one_line(monkeypatch):
    def refuse(**options: object) -> None:
        raise ray_error("Token mismatch\nand much more")

    ray_error = local_ray.ray.exceptions.AuthenticationError
    monkeypatch.setattr(local_ray.ray, "init", refuse)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match="cannot be used: Token mismatch") as told, local_ray.running_ray(address):
            pass
    assert "\n" not in str(told.value)


def test_auto_without_a_ray_says_how_to_start_one(monkeypatch, tmp_path):
    monkeypatch.setattr(local_ray, "get_ray_address_file", lambda folder: tmp_path / "none")
    with pytest.raises(UserError, match="ray start --head"), local_ray.running_ray("auto"):
        pass


TRIAL = types.SimpleNamespace(config={"run_ids": ["a"]})


def test_tensorboard_gets_the_whole_curve_once(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    root = open_root(tmp_path)
    curve = [{"update": 10 * n, "loss": 1.0 / n} for n in range(1, 5)]
    results.write_row(root, {"run_id": "a", "status": "done", "curve": curve})
    callback = TensorBoard(root, {"a": "a run"})
    callback.on_trial_result(1, [], TRIAL, {"run_id": "a", "update": 20, "loss": 0.5})
    callback.on_trial_result(2, [], TRIAL, {"run_id": "a", "update": 40, "loss": 0.25, "loss_best": 0.25})
    callback.on_trial_complete(3, [], TRIAL)
    (log,) = (tmp_path / "a").glob("events*")
    content, steps = log.read_bytes(), []
    while content:
        size = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + size])
        steps += [event.step for value in event.summary.value if value.tag == "held-out_loss"]
        content = content[12 + size + 4 :]
    assert steps == [20, 30, 40]
    assert callback.curves == {}


@pytest.mark.parametrize(
    ("names", "root", "said"),
    [
        (("wandb",), "runs", "--log wandb needs the package wandb"),
        (("tensorboard",), "mock://", "--log tensorboard writes to folders"),
    ],
)
def test_a_tracker_that_cannot_watch_is_refused(tmp_path, monkeypatch, names, root, said):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else real(name))
    place = open_root(tmp_path) if root == "runs" else trackers.Root
    if root != "runs":

        class Elsewhere:
            uri = "s3://bucket"

        place = Elsewhere()
    with pytest.raises(UserError, match=said):
        Wanted(names, place, "study", {}).callbacks()


def test_nobody_watches_where_none_is_said(tmp_path):
    assert Wanted(("none",), open_root(tmp_path), "study", {}).callbacks() == []
    assert len(Wanted((), open_root(tmp_path), "study", {}).callbacks()) == 1
