#!/bin/sh
# Convert a list of models in a Slurm job array: each of n tasks takes every n-th model.
#
#     sbatch slurm.sh MANIFEST OUTPUT [OPTION ...]
#
# Paths are relative to where sbatch is called; all nodes must see them. Task i writes to
# OUTPUT/part-i, with results.jsonl there. To go on after a time limit or a failure, submit the
# same array again: what is done is skipped.
#
# To change: the lines below, as few as --array=0-0; where the program is; HF_HOME.
#SBATCH --job-name=to-onnx
#SBATCH --array=0-7
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=to-onnx-%A-%a.log
# Before the time is up, SIGTERM to this shell alone, that is, after `exec`, to the batch.
#SBATCH --signal=B:TERM@60
set -eu

[ $# -ge 2 ] || { echo 'usage: sbatch slurm.sh MANIFEST OUTPUT [OPTION ...]' >&2; exit 2; }
manifest=$1 part=$2/part-$SLURM_ARRAY_TASK_ID
shift 2

# . "$HOME/venv/bin/activate"
# export HF_HOME=/shared/huggingface # all nodes' cache of the Hub
# export HF_HUB_OFFLINE=1            # nodes without network: `hf download NAME` before

# What is other tasks' is left blank: a line keeps its number, and the file its kind by its name.
mkdir -p "$part"
lines=$part/${manifest##*/}
awk -v n="$SLURM_ARRAY_TASK_COUNT" -v i="$SLURM_ARRAY_TASK_ID" \
    '{ print (!/^[ \t]*(#|$)/ && models++ % n == i % n) ? $0 : "" }' "$manifest" >"$lines"
grep -q . "$lines" || exit 0 # more tasks than models
exec modelexport-optimum batch "$lines" -o "$part" --workers "${SLURM_CPUS_PER_TASK:-1}" "$@"
