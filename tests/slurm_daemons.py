"""A real Slurm of two nodes on this machine's loopback, in a folder of its own."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
NODES = ("n1", "n2")

CONFIGURATION = """
ClusterName=loop
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={run}/munge.sock,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=sched_interval=2,batch_sched_delay=0,bf_interval=2,requeue_delay=0
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{more}
KillWait=60
SlurmdTimeout=6
StateSaveLocation={run}/state
SlurmdSpoolDir={run}/%n
SlurmctldPidFile={run}/slurmctld.pid
SlurmdPidFile={run}/%n.pid
SlurmctldLogFile={run}/slurmctld.log
SlurmdLogFile={run}/%n.log
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={first} CPUs=2 RealMemory=10000 State=UNKNOWN
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={second} CPUs=2 RealMemory=10000 State=UNKNOWN
PartitionName=low Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=120
PartitionName=high Nodes=n[1-2] Default=NO MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str:
    """Why no daemons can be started here; empty where they can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]
    if absent:
        return f"SLURM IS NOT TESTED: {', '.join(absent)} not installed (apt-get install slurm-wlm munge)"
    if os.geteuid() != 0:
        return "SLURM IS NOT TESTED: its daemons need root here"
    return ""


def search_path() -> str:
    """Where the daemons lie, also when the user's PATH has no sbin."""
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


@dataclass
class Slurm:
    """The running daemons."""

    folder: Path
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to find the controller."""
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": search_path()}

    def ask(self, *command: str) -> str:
        """What a client command prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, ... of a job."""
        said = self.ask("scontrol", "--oneliner", "show", "job", job)
        return said.split("JobState=")[1].split()[0]

    def fields(self, job: str) -> dict[str, str]:
        """All that Slurm knows of a job."""
        said = self.ask("scontrol", "--oneliner", "show", "job", job)
        return dict(word.split("=", 1) for word in said.split() if "=" in word)

    def log(self) -> str:
        """What the controller saw."""
        return (self.folder / "slurmctld.log").read_text()

    def start(self, name: str, *command: str) -> None:
        """Start a daemon in the foreground, as a child."""
        with (self.folder / f"{name}.out").open("wb") as out:
            self.daemons[name] = subprocess.Popen(command, env=self.environment, stdout=out, stderr=out)

    def lose_node(self, node: str) -> None:
        """End all that runs on a node at once, as when its power fails."""
        mine = [process for process in processes_of(self.folder) if _node_of(process) == node]
        parents = {_parent(process) for process in mine} - set(mine)
        steps = [parent for parent in parents if Path(f"/proc/{parent}/cmdline").read_bytes().startswith(b"slurmstepd")]
        self.daemons[node].kill()
        for process in [*steps, *mine]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.daemons[node].wait()

    def start_node(self, node: str) -> None:
        """Start a slurmd."""
        self.start(node, "slurmd", "-D", "-N", node)


def _node_of(process: int) -> str:
    words = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return next((word.decode().split("=")[1] for word in words if word.startswith(b"SLURMD_NODENAME=")), "")


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_for(true: Callable[[], object], seconds: float, what: str, said: Callable[[], str] = str) -> None:
    """Poll until the function says yes."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}\n{said()}"
        time.sleep(0.2)


def processes_of(folder: Path) -> dict[int, str]:
    """Processes whose environment, command or place names the folder, with their commands."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
            if str(folder).encode() in told + bytes((process / "cwd").readlink()) and int(process.name) != os.getpid():
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has just ended
            continue
    return found


@contextmanager
def slurm(folder: Path, more: str = "SlurmctldParameters=preempt_send_user_signal") -> Iterator[Slurm]:
    """Slurm, until the block ends."""
    folder.chmod(0o755)
    controller, first, second = free_ports(3)
    (folder / "state").mkdir()
    for node in NODES:
        (folder / node).mkdir()
    text = CONFIGURATION.format(run=folder, controller=controller, first=first, second=second, more=more)
    (folder / "slurm.conf").write_text(text)
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    one = Slurm(folder)
    try:
        places = {"key": "key", "socket": "munge.sock", "pid": "munged.pid", "log": "munged.log", "seed": "munged.seed"}
        options = [
            f"--{'socket' if name == 'socket' else name + '-file'}={folder / place}" for name, place in places.items()
        ]
        one.start("munged", "munged", "--foreground", "--force", *options)
        wait_for((folder / "munge.sock").exists, 20, "munged's socket")
        one.start("slurmctld", "slurmctld", "-D")
        for node in NODES:
            one.start_node(node)
        wait_for(lambda: _idle(one) == len(NODES), 60, f"both nodes idle; see {folder}")
        yield one
    finally:
        if "slurmctld" in one.daemons:
            _end_jobs(one)
        for daemon in reversed(list(one.daemons.values())):
            daemon.terminate()
        for daemon in one.daemons.values():
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _end_jobs(one: Slurm) -> None:
    """Cancel all jobs, and wait until Slurm has cleaned up after them: what daemons leave, nobody ends."""
    subprocess.run(["scancel", "--user=root"], env=one.environment, capture_output=True, timeout=60)
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        left = subprocess.run(["squeue", "--noheader"], env=one.environment, capture_output=True, text=True, timeout=60)
        if left.stdout == "":
            return
        time.sleep(0.5)


def _idle(one: Slurm) -> int:
    done = subprocess.run(
        ["sinfo", "-h", "-N", "-p", "low", "-o", "%T"], env=one.environment, capture_output=True, text=True
    )
    return done.stdout.split().count("idle")
