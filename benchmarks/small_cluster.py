"""A Ray cluster of three nodes on this machine, in a process of its own, whose nodes can be lost and replaced.

python -m benchmarks.small_cluster CPUS

It says the address on its first line. Every line it is given has it kill the raylet of the worker node that has been
there for longest, put a new node in its place, and say so; it ends with its input.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

WORKER_NODES = 2
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Has Ray bind every port to the loopback address, and look for the cluster's there."""


class SmallCluster:
    """The other side: starts the process and talks to it."""

    def __init__(self, cpus: int, environment: dict[str, str], log: Path) -> None:
        """Start it and wait until it is there.

        Args:
            cpus: cores that each node pretends to have.
            environment: of all its processes.
            log: takes what it prints beside its answers.

        """
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.small_cluster", str(cpus)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**environment, **LOOPBACK},
                text=True,
            )
        self.address = self._answer()

    def replace(self) -> str:
        """Lose a worker node, get another; what was done."""
        assert self._process.stdin is not None
        self._process.stdin.write("replace\n")
        self._process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        """End the cluster."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
        finally:
            assert self._process.stdout is not None
            self._process.stdout.close()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        if not answer:
            raise RuntimeError("the cluster's own process has ended")
        return answer


def main(arguments: list[str]) -> None:
    """Be the cluster."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # Ray may print what it likes
    from ray.cluster_utils import Cluster

    node = {"num_cpus": int(arguments[0]), "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    workers = [cluster.add_node(**node) for _ in range(WORKER_NODES)]
    answers.write(f"{cluster.address}\n")
    for _ in sys.stdin:
        lost = workers.pop(0)
        pid = _kill_raylet(lost)
        cluster.remove_node(lost, allow_graceful=False)
        workers.append(cluster.add_node(**node))
        answers.write(f"raylet {pid} of {WORKER_NODES + 1} nodes, then a new node\n")
    cluster.shutdown()


def _kill_raylet(node: Any) -> int:
    raylet = node.all_processes["raylet"][0].process
    os.kill(raylet.pid, signal.SIGKILL)
    raylet.wait()
    return int(raylet.pid)


if __name__ == "__main__":
    main(sys.argv[1:])
