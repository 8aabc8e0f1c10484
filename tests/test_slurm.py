"""The batch script as text, bad input against a real sbatch, and whole sweeps under real daemons."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.slurm import Job, render, seconds

from conftest import make_columns, write_hdf5
from slurm_daemons import Slurm, missing, processes_of, slurm, wait_for

HERE = Path(__file__).parent
COMMAND = ("scaling", "run", "own.yaml")
RUNS = 12
JOB = Job(
    command=("scaling", "run", "sweeps/my study.yaml"), time="12:00:00", cpus_per_node=64, programs="/opt/venv/bin"
)
GOLDEN = {
    "ray": replace(
        JOB,
        nodes=4,
        gpus_per_node=8,
        partition="gpu",
        account="lab",
        output="logs/%x-%j.out",
        sbatch=("--mem=0", "--comment='two words'"),
    ),
    "array": replace(JOB, array=6, max_requeues=3, programs=None),
}


@pytest.mark.parametrize("form", GOLDEN)
def test_the_script_of_a_job_is_the_recorded_one(form):
    golden = HERE / "golden" / f"slurm_{form}.sh"
    assert render(GOLDEN[form]) == golden.read_text()


@pytest.mark.parametrize("form", GOLDEN)
def test_bash_can_read_the_script(form):
    done = subprocess.run(["bash", "-n"], input=render(GOLDEN[form]), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_command_reaches_the_shell_word_for_word():
    words = ("printf", "%s|", "a b", "$HOME", "it's", '"', "*", "")
    script = render(replace(JOB, command=words)).splitlines()
    line = next(line for line in script if line.startswith("command="))
    said = subprocess.run(["bash", "-c", f'{line}; "${{command[@]}}"'], capture_output=True, text=True).stdout
    assert said == "a b|$HOME|it's|\"|*||"


@pytest.mark.parametrize(
    ("time", "length"),
    [("90", 5400), ("90:30", 5430), ("12:00:00", 43200), ("2-12", 216000), ("1-0:30", 88200), ("1-0:0:5", 86405)],
)
def test_a_time_limit_is_read_as_slurm_reads_it(time, length):
    assert seconds(time) == length


def launch(
    *arguments: object, cwd: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The launcher's command line, from a folder that is not the repository."""
    place = {**(environment or os.environ), "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, "-m", "cluster.slurm", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=place, capture_output=True, text=True, timeout=60)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that says why."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    return done.stderr


USUAL = {"--cpus-per-node": 2, "--time": "1:00:00"}


def options(**more: object) -> list[object]:
    """A usual call's options, some of them changed."""
    asked = {**USUAL, **{f"--{name.replace('_', '-')}": value for name, value in more.items()}}
    return [word for pair in asked.items() for word in pair]


def test_a_dry_run_prints_the_script_where_slurm_is_not_installed(tmp_path):
    nowhere = {**os.environ, "PATH": "/nonexistent"}
    done = launch(*options(), "--dry-run", "--", *COMMAND, cwd=tmp_path, environment=nowhere)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!/bin/bash\n")
    assert "command=(scaling run own.yaml)\n" in done.stdout
    assert "sbatch is not installed" in refused(launch(*options(), "--", *COMMAND, cwd=tmp_path, environment=nowhere))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (options(time="noon"), "--time must look like"),
        (options(time="1:2:3:4"), "--time must look like"),
        (options(time="0"), "--time must be more than"),
        (options(nodes=0), "--nodes must be at least 1: 0"),
        (options(cpus_per_node=-2), "--cpus-per-node must be at least 1: -2"),
        (options(gpus_per_node=-1), "--gpus-per-node must be at least 0: -1"),
        (options(array=0), "--array must be at least 1: 0"),
        (options(max_requeues=-1), "--max-requeues must be at least 0: -1"),
        (options(nodes="two"), "'two' is not a valid integer"),
        (options(array=2, nodes=2), "leave out --nodes 2 or --array 2"),
        (options(sbatch="qos=long"), "--sbatch takes an option with its dashes"),
        (options(partition="a\nb"), "must be one line of text"),
        (options(nodse=2), "No such option"),
        (["--time", "1:00:00"], "Missing option '--cpus-per-node'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, asked, said):
    assert said in refused(launch(*asked, "--dry-run", "--", *COMMAND, cwd=tmp_path))


def test_a_launcher_without_a_command_says_where_it_goes(tmp_path):
    assert "no command to run; write it last, after --" in refused(launch(*options(), "--dry-run", "--", cwd=tmp_path))


NO_DAEMONS = missing()
needs_slurm = pytest.mark.skipif(bool(NO_DAEMONS), reason=NO_DAEMONS or "none")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Slurm]:
    """A Slurm of two nodes; when it has ended, nothing of it and of its jobs runs any more."""
    folder = tmp_path_factory.mktemp("slurm")
    before = set(Path("/tmp").glob("ray.*"))
    with slurm(folder) as running:
        yield running
    wait_for(lambda: processes_of(folder) == {}, 20, "no process left", lambda: str(processes_of(folder)))
    assert set(Path("/tmp").glob("ray.*")) <= before


@needs_slurm
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (options(partition="hihg"), "no partition 'hihg'; there are: high, low"),
        (options(sbatch="--constraint=moon"), "sbatch refused: Batch job submission failed: Invalid feature"),
        (options(output="/proc/nowhere/log"), "the folder of the output cannot be written: /proc/nowhere"),
        (options(sbatch="--nonsense"), "sbatch refused: unrecognized option"),
    ],
)
def test_what_slurm_refuses_is_one_line_and_nothing_is_queued(site, tmp_path, asked, said):
    assert said in refused(launch(*asked, "--", *COMMAND, cwd=tmp_path, environment=site.environment))
    assert site.ask("squeue", "--noheader") == ""


@needs_slurm
def test_a_controller_that_does_not_answer_is_one_line(site, tmp_path):
    text = (site.folder / "slurm.conf").read_text().replace("SlurmctldPort=", "SlurmctldPort=1 #")
    (tmp_path / "slurm.conf").write_text(text + "MessageTimeout=2\n")
    away = {**site.environment, "SLURM_CONF": str(tmp_path / "slurm.conf")}
    said = refused(launch(*options(partition="low"), "--", *COMMAND, cwd=tmp_path, environment=away))
    assert "sinfo refused: " in said


class Sweep:
    """A sweep of short runs in a folder, and the jobs that work on it."""

    def __init__(self, folder: Path, site: Slurm, amount: int = 40) -> None:
        lengths = np.random.default_rng(0).integers(8, 30, 40).tolist()
        write_hdf5(folder / "mine.hdf5", make_columns(lengths))
        (folder / "own.yaml").write_text(
            f"""
name: own
base:
  model: {{width: 16, depth: 1, context: 4, subsequence: 2}}
  data: {{path: mine.hdf5}}
  train: {{amount: {amount}, batch: 4, evaluations: 2}}
axes: {{seed: {list(range(RUNS))}}}
"""
        )
        self.folder, self.site = folder, site

    def submit(self, **asked: object) -> str:
        done = launch(
            *options(**{"partition": "low", "output": "log.%a" if "array" in asked else "log", **asked}),
            "--",
            *COMMAND,
            cwd=self.folder,
            environment=self.site.environment,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def rows(self) -> dict[Path, int]:
        """Rows that can be read, and when they were written."""
        return {path: path.stat().st_mtime_ns for path in self.folder.glob("runs/*/row.parquet")}

    def check(self, least: int, most: int = RUNS) -> None:
        """So many runs have a row; no row is damaged, and no token of Ray's is left."""
        rows = [pq.read_table(path).to_pylist()[0] for path in self.rows()]
        assert least <= len(rows) <= most, self.said()
        assert [row["error"] for row in rows if row["status"] != "done"] == [], self.said()
        assert list(self.folder.glob(".scaling-ray-*")) == [], self.said()

    def wait_for_rows(self, count: int, seconds: float = 240) -> None:
        wait_for(lambda: len(self.rows()) >= count, seconds, f"{count} rows", self.said)

    def wait_for_end(self, seconds: float = 240) -> None:
        wait_for(lambda: self.site.ask("squeue", "--noheader") == "", seconds, "an empty queue", self.said)

    def said(self) -> str:
        logs = [*self.folder.glob("log*"), *self.folder.glob(".scaling-ray-*/*.log")]
        queue = self.site.ask("squeue", "--noheader")
        return "\n".join([f"{len(self.rows())} rows", queue, *(f"{log.name}:\n{log.read_text()}" for log in logs)])


@needs_slurm
def test_a_preempted_sweep_on_two_nodes_is_requeued_and_ends_with_every_row(site, tmp_path):
    sweep = Sweep(tmp_path, site)
    job = sweep.submit(nodes=2, cpus_per_node=1)
    token = tmp_path / f".scaling-ray-{job}" / "token"
    wait_for(token.exists, 20, "the token", sweep.said)
    assert token.stat().st_mode & 0o777 == 0o600
    sweep.wait_for_rows(2)
    site.ask("sbatch", "--partition=high", "--nodes=2", "--cpus-per-task=2", "--output=/dev/null", "--wrap=sleep 1")
    wait_for(lambda: site.fields(job)["Restarts"] == "1", 120, "the requeue", sweep.said)
    before = sweep.rows()
    sweep.wait_for_end()
    sweep.check(RUNS)
    assert 0 < len(before) < RUNS
    assert before.items() <= sweep.rows().items()
    assert (site.state(job), site.fields(job)["ExitCode"]) == ("COMPLETED", "0:0")
    assert "interrupted with work left; requeued" in sweep.said()


@needs_slurm
def test_a_cancelled_sweep_leaves_whole_rows_and_no_process(site, tmp_path):
    sweep = Sweep(tmp_path, site)
    job = sweep.submit(nodes=2, cpus_per_node=1)
    sweep.wait_for_rows(2)
    site.ask("scancel", job)
    sweep.wait_for_end()
    assert site.state(job) == "CANCELLED"
    wait_for(lambda: processes_of(tmp_path) == {}, 20, "no process left", lambda: str(processes_of(tmp_path)))
    sweep.check(2, RUNS - 1)


@needs_slurm
def test_an_array_whose_node_dies_ends_with_every_row(site, tmp_path):
    sweep = Sweep(tmp_path, site)
    job = sweep.submit(array=2)
    sweep.wait_for_rows(2)
    wait_for(lambda: site.ask("squeue", "--noheader", "--format=%T") == "RUNNING\nRUNNING", 30, "two tasks", sweep.said)
    site.lose_node("n2")
    sweep.wait_for_rows(RUNS)
    site.start_node("n2")
    sweep.wait_for_end()
    sweep.check(RUNS)
    tasks = site.ask("scontrol", "--oneliner", "show", "job", job)
    assert tasks.count(" Restarts=1 ") == 1, f"{tasks}\n{sweep.said()}\n{site.log()}"


@needs_slurm
def test_an_interrupted_job_is_requeued_so_many_times_and_no_more(site, tmp_path):
    sweep = Sweep(tmp_path, site, amount=4000)
    job = sweep.submit(array=1, max_requeues=1)
    for _ in range(2):
        wait_for(lambda: list(tmp_path.glob("runs/*/claim-*")), 120, "a run", sweep.said)
        site.ask("scancel", "--batch", "--signal=USR1", job)
        wait_for(lambda: not list(tmp_path.glob("runs/*/claim-*")), 60, "the driver's end", sweep.said)
    sweep.wait_for_end()
    assert sweep.said().count("interrupted with work left; requeued") == 1
    assert "not requeued: --max-requeues 1 is reached; submit again" in sweep.said()
    assert site.fields(job)["ExitCode"] == "75:0"


def submit_with(ray: str, command: tuple[str, ...], site: Slurm, folder: Path) -> str:
    """The number of a job that has ended, in which the program `ray` was this one."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "ray").write_text(f"#!/bin/bash\n{ray}")
    (programs / "ray").chmod(0o755)
    place = {**site.environment, "PATH": f"{programs}:{site.environment['PATH']}"}
    script = render(Job(command=command, time="1:00:00", cpus_per_node=2, output=str(folder / "log")))
    done = subprocess.run(["sbatch", "--parsable"], input=script, cwd=folder, env=place, capture_output=True, text=True)
    wait_for(lambda: site.ask("squeue", "--noheader") == "", 60, "the end")
    return done.stdout.strip()


STRAGGLER = """
for word; do [[ $word == --temp-dir=* ]] && home=${word#*=}; done
echo "$home" >home
bash -c 'trap "" TERM USR2; while :; do kill -0 "$0" || mkdir -p "$1/late"; done' $$ "$home" 2>/dev/null &
trap exit TERM
echo Ray runtime started
while :; do sleep 0.1; done
"""


@needs_slurm
def test_a_worker_that_outlives_ray_leaves_no_folder(site, tmp_path):
    job = submit_with(STRAGGLER, ("true",), site, tmp_path)
    wait_for(lambda: processes_of(tmp_path) == {}, 20, "no process left", lambda: str(processes_of(tmp_path)))
    assert site.fields(job)["ExitCode"] == "0:0"
    assert not Path((tmp_path / "home").read_text().strip()).exists()


@needs_slurm
def test_a_node_on_which_ray_does_not_start_is_one_line(site, tmp_path):
    job = submit_with("echo broken\nexit 3\n", COMMAND, site, tmp_path)
    logs = tmp_path / f".scaling-ray-{job}"
    assert (tmp_path / "log").read_text() == f"slurm job {job}: Ray did not start on n1; see {logs}/n1-0.log\n"
    assert "broken" in (logs / "n1-0.log").read_text()
    assert not (logs / "token").exists()
    assert site.fields(job)["ExitCode"] == "1:0"
