#!/bin/bash
#SBATCH --job-name=scaling
#SBATCH --array=0-5
#SBATCH --time=12:00:00
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --no-kill
#SBATCH --signal=B:USR1@60

command=(scaling run 'sweeps/my study.yaml')
max_requeues=3

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

export SCALING_ADDRESS=none SCALING_NO_WAIT=1
drive
leave
