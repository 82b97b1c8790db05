#!/usr/bin/env bash
#SBATCH --job-name=probing-extract
#SBATCH --array=0-15
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
# An array job over one store. Submit from a folder that all nodes see, with the arguments of `probing extract`:
#
#   sbatch scripts/slurm_extract.sh --model gpt2 --corpus corpus.jsonl --to cache/states/gpt2
#
# Every task takes its part of the shards. A task that runs out of time, or is preempted, puts itself back in the queue
# and goes on where it was; a task that failed is submitted again with the same line. Nothing is computed twice.
set -uo pipefail

workers=${SLURM_ARRAY_TASK_COUNT:-1}
index=$((${SLURM_ARRAY_TASK_ID:-0} - ${SLURM_ARRAY_TASK_MIN:-0}))
probing extract "$@" --array-size "$workers" --array-index "$index" --quiet &
child=$!
trap 'kill -USR1 "$child"' USR1 TERM

wait "$child"
status=$?
while kill -0 "$child" 2>/dev/null; do # a trapped signal ends `wait`, not the child
    wait "$child"
    status=$?
done
if [ "$status" -eq 75 ] && command -v scontrol >/dev/null; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}_${SLURM_ARRAY_TASK_ID:-0}"
fi
exit "$status"
