"""Slurm: one batch script that runs a command on all nodes of a job, or on one node per task of an array.

    python -m cluster.slurm --nodes 4 --gpus-per-node 8 --cpus-per-node 64 --time 12:00:00 -- scaling run SWEEP

The command meets the job through its environment, its exit code and a signal; ``cluster/slurm.md`` is the user's page.
"""

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click

USER_ERROR = 2
"""Exit code where the input cannot be used; the reason is one line."""

TIME = re.compile(
    r"(?:(?P<days>\d+)-(?P<hours>\d+)(?::(?P<minutes>\d+)(?::(?P<seconds>\d+))?)?|(?P<plain>\d+(?::\d+){0,2}))"
)
"""Slurm's own forms: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""

SHORTEST = 120
"""Seconds; Slurm warns a job up to two minutes before its end, and a shorter one would do nothing but stop."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What Slurm is asked for; none of it can change a result."""

    command: tuple[str, ...]
    """Run once in the Ray form, once per task in the array form."""
    time: str
    """Limit of one stay on the nodes, in Slurm's own forms; the job is requeued when work is left."""
    cpus_per_node: int
    nodes: int = 1
    gpus_per_node: int = 0
    array: int | None = None
    """Tasks of one node each that share the sweep without Ray."""
    partition: str | None = None
    account: str | None = None
    name: str = "scaling"
    output: str | None = None
    """Slurm's file name pattern; by default Slurm's own default."""
    max_requeues: int = 100
    start_seconds: int = 300
    """How long the nodes may take to join Ray; imports from a busy network file system take minutes."""
    sbatch: tuple[str, ...] = ()
    """Further options of sbatch, as they would stand on its command line."""
    programs: str | None = None
    """Folder put before the PATH on every node."""

    def __post_init__(self) -> None:
        """Refuse what Slurm would refuse late or misread."""
        if not self.command:
            raise ValueError(
                "no command to run; write it last, after --, for example: -- scaling run sweeps/smoke.yaml"
            )
        for option, value, least in self._counts():
            if value is not None and value < least:
                raise ValueError(f"{option} must be at least {least}: {value}")
        if self.array is not None and self.nodes != 1:
            raise ValueError(f"a task of an array has one node; leave out --nodes {self.nodes} or --array {self.array}")
        if seconds(self.time) <= SHORTEST:
            raise ValueError(f"--time must be more than {SHORTEST // 60} minutes: {self.time!r}")
        for option in self.sbatch:
            if not option.startswith("-"):
                raise ValueError(f"--sbatch takes an option with its dashes, such as --sbatch --qos=long: {option!r}")
        for text in (self.partition, self.account, self.name, self.output, *self.sbatch):
            if text is not None and ("\n" in text or not text):
                raise ValueError(f"an option of sbatch must be one line of text: {text!r}")

    def _counts(self) -> tuple[tuple[str, int | None, int], ...]:
        return (
            ("--nodes", self.nodes, 1),
            ("--cpus-per-node", self.cpus_per_node, 1),
            ("--gpus-per-node", self.gpus_per_node, 0),
            ("--array", self.array, 1),
            ("--max-requeues", self.max_requeues, 0),
            ("--start-timeout", self.start_seconds, 1),
        )


def seconds(time: str) -> int:
    """Length of a time limit.

    Raises:
        ValueError: it has none of Slurm's forms.

    """
    found = TIME.fullmatch(time)
    if found is None:
        raise ValueError(f"--time must look like 12:00:00, 2-12:00:00 or 90 (minutes): {time!r}")
    if found["plain"] is None:
        days, hours, minutes, rest = (int(found[part] or 0) for part in ("days", "hours", "minutes", "seconds"))
        return ((days * 24 + hours) * 60 + minutes) * 60 + rest
    parts = [int(part) for part in found["plain"].split(":")]
    hours, minutes, rest = parts if len(parts) == 3 else [0, *parts, 0][:3]
    return (hours * 60 + minutes) * 60 + rest


def render(job: Job) -> str:
    """The batch script."""
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in _options(job)), ""]
    if job.programs is not None:
        lines += [f'export PATH={shlex.quote(job.programs)}:"$PATH"']
    lines += [f"command=({shlex.join(job.command)})", f"max_requeues={job.max_requeues}"]
    if job.array is not None:
        return "\n".join(lines) + "\n" + DRIVER + ARRAY
    lines += [f"cpus={job.cpus_per_node}", f"gpus={job.gpus_per_node}", f"start_seconds={job.start_seconds}"]
    return "\n".join(lines) + "\n" + DRIVER + RAY


def _options(job: Job) -> list[str]:
    asked = {
        "job-name": job.name,
        "partition": job.partition,
        "account": job.account,
        "output": job.output,
        "array": None if job.array is None else f"0-{job.array - 1}",
        "time": job.time,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": job.cpus_per_node,
        "gpus-per-node": job.gpus_per_node or None,
    }
    named = [f"--{name}={shlex.quote(str(value))}" for name, value in asked.items() if value is not None]
    return [*named, "--requeue", "--open-mode=append", "--no-kill", "--signal=B:USR1@60", *job.sbatch]


DRIVER = r"""
# The command, called the driver, stops with a checkpoint and exits with 75 when it gets USR1. Slurm sends USR1 or TERM
# to this script, and on some sites to all processes of the job; the driver takes several for one.
interrupted=75
me=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
me=${me:-$SLURM_JOB_ID}
driver='' asked=''

say() { echo "slurm job $SLURM_JOB_ID: $*" >&2; }

on_signal() {
  asked=yes
  [[ -n $driver ]] && kill -USR1 "$driver" 2>/dev/null
}
trap on_signal USR1 TERM

# Run the driver to its end and leave its exit code in $code; `wait` also returns when a signal comes.
drive() {
  code=$interrupted
  [[ -n $asked ]] && return
  setsid "${command[@]}" </dev/null &
  driver=$!
  [[ -n $asked ]] && kill -USR1 "$driver"
  until wait "$driver"; ! kill -0 "$driver" 2>/dev/null; do :; done
  wait "$driver"
  code=$?
  [[ -n $asked && $code == 138 ]] && code=$interrupted # USR1 came before the driver listened to it
}

# Whether Slurm is ending the job: it was cancelled, or Slurm requeues it.
is_ending() { [[ $(squeue --noheader --jobs="$me" --format=%T) != RUNNING ]]; }

# Leave with the driver's code; back into the queue where it was interrupted.
leave() {
  if ((code == interrupted)) && ! is_ending; then
    if ((${SLURM_RESTART_COUNT:-0} >= max_requeues)); then
      say "interrupted with work left, and not requeued: --max-requeues $max_requeues is reached; submit again to go on"
    elif scontrol requeue "$me" || is_ending; then # it may just have been preempted, which requeues it too
      say "interrupted with work left; requeued"
    else
      say "interrupted with work left, and Slurm refused to requeue it; submit again to go on"
    fi
  fi
  exit "$code"
}
"""

ARRAY = r"""
export SCALING_ADDRESS=none SCALING_NO_WAIT=1
drive
leave
"""

RAY = r"""
# One Ray process group per node, each a step of this job. The step's task starts Ray with a temporary folder of its own
# and ends it on USR2. TERM comes from Slurm; where a preemption reaches the steps alone, it is passed on to the script.
# A worker that is still starting does not see Ray end, and would make its folder anew.
keep_ray='
home=$(mktemp -d /tmp/ray.XXXXXX) || exit 1
remove() { for _ in {1..50}; do pkill -KILL -f "$home" || break; sleep 0.1; done; rm -rf "$home"; }
trap "kill \$ray; wait \$ray; remove; exit 0" USR2
trap "scancel --batch --signal=USR1 $SLURM_JOB_ID" TERM
setsid ray start --temp-dir="$home" --block --disable-usage-stats \
  --dashboard-agent-listen-port=0 "$@" &
ray=$!
until wait "$ray"; code=$?; ! kill -0 "$ray" 2>/dev/null; do :; done
remove
exit "$code"
'
folder=$SLURM_SUBMIT_DIR/.scaling-ray-$SLURM_JOB_ID
restart=${SLURM_RESTART_COUNT:-0}
steps=()
watcher='' keep_logs=yes

# The address by which Slurm itself reaches a node; the first of this machine's own where that is the loopback.
address_of() {
  local name found
  name=$(scontrol --oneliner show node "$1" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
  found=$(getent ahostsv4 "${name:-$1}" | awk '{print $1; exit}')
  if [[ -z $found || $found == 127.* ]]; then
    found=$(hostname -I | awk '{print $1}')
  fi
  echo "${found:-127.0.0.1}"
}

start_on() {
  local host=$1 address
  shift
  address=$(address_of "$host")
  setsid srun --overlap --nodes=1 --ntasks=1 --nodelist="$host" --cpus-per-task="$cpus" \
    bash -c "$keep_ray" keep_ray --node-ip-address="$address" --num-cpus="$cpus" --num-gpus="$gpus" \
    --object-store-memory=500000000 "$@" </dev/null >"$folder/$host-$restart.log" 2>&1 &
  steps+=($!)
}

await() {
  local host=$1 step=$2 log=$folder/$1-$restart.log
  until grep -qs 'Ray runtime started' "$log"; do
    [[ -n $asked ]] && return
    kill -0 "$step" 2>/dev/null || give_up "Ray did not start on $host; see $log"
    ((SECONDS < start_seconds)) || give_up "$host did not join Ray within $start_seconds s; see $log"
    sleep 0.5
  done
}

give_up() {
  say "$*"
  end_ray
  rm -f "$folder/token"
  exit 1
}

# Without the head the driver cannot go on; where it does not see that itself, it is ended.
watch_head() {
  local rest=''
  trap '' TERM USR1 # a cancellation sends them to all processes
  trap 'kill -KILL "$rest"; exit' USR2
  while kill -0 "${steps[0]}" 2>/dev/null; do
    sleep 2 &
    rest=$!
    wait "$rest"
  done
  say "the head of Ray on ${hosts[0]} has ended; see $folder/${hosts[0]}-$restart.log"
  kill -USR1 $$
  sleep 15 & # Slurm kills 30 s after a cancellation
  rest=$!
  wait "$rest"
  kill -USR2 $$
}
trap 'kill -KILL "$driver"' USR2

# Only this job's own: other jobs of the same user may have Ray on the same nodes.
end_ray() {
  [[ -n $watcher ]] && kill -USR2 "$watcher" 2>/dev/null
  [[ ${#steps[@]} == 0 ]] && return
  kill -USR2 "${steps[@]}" 2>/dev/null
  for _ in {1..40}; do
    kill -0 "${steps[@]}" 2>/dev/null || return
    sleep 0.5
  done
  kill -KILL "${steps[@]}" 2>/dev/null
}

umask_before=$(umask)
umask 077
if ! mkdir -p "$folder" || ! rm -f "$folder/token" ||
  ! head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$folder/token"; then
  say "cannot write $folder, which all nodes must see; submit from a shared folder that is writable"
  exit 1
fi
umask "$umask_before"
unset RAY_AUTH_TOKEN RAY_ADDRESS
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # TERM reaches all of Ray's processes at once: none is left to drain for

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=$(address_of "${hosts[0]}")
port=$((20000 + SLURM_JOB_ID % 5000 * 2))
while (exec 3<>"/dev/tcp/$head/$port") 2>/dev/null; do port=$((port + 2)); done
export SCALING_ADDRESS=$head:$port
client=()
if python3 -c 'import grpc' 2>/dev/null; then client=(--ray-client-server-port=$((port + 1))); fi # refused without

start_on "${hosts[0]}" --head --port="$port" --include-dashboard=false "${client[@]}"
await "${hosts[0]}" "${steps[0]}"
for host in "${hosts[@]:1}"; do start_on "$host" --address="$SCALING_ADDRESS"; done
for at in "${!steps[@]}"; do await "${hosts[at]}" "${steps[at]}"; done

watch_head &
watcher=$!
drive
if ((code == 0)) || kill -0 "${steps[0]}" 2>/dev/null; then
  keep_logs=''
else
  code=$interrupted
  is_ending && keep_logs='' # the head was ended with it
fi
end_ray
rm -f "$folder/token"
[[ -z $keep_logs ]] && rm -f "$folder"/*-"$restart".log
rmdir "$folder" 2>/dev/null
leave
"""


def submit(job: Job) -> str:
    """The number that Slurm gave the job.

    Raises:
        ValueError: Slurm is not here or does not take it, or the log has no place.

    """
    if shutil.which("sbatch") is None:
        raise ValueError("sbatch is not installed here; submit from a login node, or see the script with --dry-run")
    if job.partition is not None:
        known = [name.rstrip("*") for name in _ask("sinfo", "--noheader", "--format=%P").split()]
        for name in job.partition.split(","):
            if name not in known:
                raise ValueError(f"no partition {name!r}; there are: {', '.join(sorted(set(known)))}")
    _check_writable(Path(job.output or "").parent)
    return _ask("sbatch", "--parsable", text=render(job)).split(";")[0].strip()


def _check_writable(folder: Path) -> None:
    if "%" in str(folder):
        return  # only Slurm knows its name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"the folder of the output cannot be written: {folder}: {error.strerror}") from error


def _ask(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode != 0:
        lines = [line.removeprefix(f"{command[0]}: ").removeprefix("error: ") for line in done.stderr.splitlines()]
        raise ValueError(f"{command[0]} refused: {'; '.join(lines) or f'exit code {done.returncode}'}")
    return done.stdout


def _programs() -> str | None:
    """Where this Python's programs lie, if the command's are among them."""
    folder = Path(sys.executable).parent
    return str(folder) if (folder / "scaling").exists() or (folder / "ray").exists() else None


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--nodes", type=int, default=1, show_default=True, help="Nodes of one Ray cluster.")
@click.option("--cpus-per-node", type=int, required=True, help="CPU cores to use on each node.")
@click.option("--gpus-per-node", type=int, default=0, show_default=True, help="GPUs to use on each node.")
@click.option("--time", required=True, help="Limit of one stay on the nodes, such as 12:00:00.")
@click.option("--array", type=int, help="Instead of Ray: this many tasks of one node each, which share the sweep.")
@click.option("--partition", help="Where to run.  [default: the site's]")
@click.option("--account", help="Who pays.  [default: the user's]")
@click.option("--job-name", "name", default="scaling", show_default=True, help="What the queue shows.")
@click.option("--output", help="Pattern of the log's name.  [default: Slurm's]")
@click.option("--max-requeues", type=int, default=100, show_default=True, help="Restarts before work is left undone.")
@click.option(
    "--start-timeout",
    "start_seconds",
    type=int,
    default=300,
    show_default=True,
    help="Seconds for all nodes to join Ray.",
)
@click.option("--sbatch", multiple=True, help="A further option of sbatch, such as --mem=64G; can be repeated.")
@click.option("--dry-run", is_flag=True, help="Print the script and submit nothing.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def _command(dry_run: bool, **asked: object) -> None:
    """Run COMMAND on Slurm's nodes; requeued until it is done."""
    job = Job(**asked, programs=_programs())  # type: ignore[arg-type]
    click.echo(render(job) if dry_run else submit(job), nl=not dry_run)


def main(arguments: list[str] | None = None) -> int:
    """Exit code of the command line."""
    try:
        _command.main(arguments, prog_name="python -m cluster.slurm", standalone_mode=False)
    except click.ClickException as error:
        said = error.format_message()
    except ValueError as error:
        said = str(error)
    else:
        return 0
    click.echo(f"error: {' '.join(said.split())}", err=True)
    return USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
