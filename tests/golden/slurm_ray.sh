#!/bin/bash
#SBATCH --job-name=scaling
#SBATCH --partition=gpu
#SBATCH --account=lab
#SBATCH --output=logs/%x-%j.out
#SBATCH --time=12:00:00
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --gpus-per-node=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --no-kill
#SBATCH --signal=B:USR1@60
#SBATCH --mem=0
#SBATCH --comment='two words'

export PATH=/opt/venv/bin:"$PATH"
command=(scaling run 'sweeps/my study.yaml')
max_requeues=100
cpus=64
gpus=8
start_seconds=300

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
