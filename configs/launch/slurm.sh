#!/usr/bin/env bash
# An index on 4 nodes of 8 GPUs: one process a node. sbatch configs/launch/slurm.sh index.yaml /shared/my.index
#SBATCH --job-name=uimjax-index
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail
config="${1:?a YAML config of kind index}"
out="${2:?a folder that every node can write to}"

# The processes find each other by SLURM's own variables. Where one is lost the others end with 75, as all do on a TERM
# two minutes before the time is up; what was finished is kept. srun gives the highest code: that of the signal where
# one was killed. The job is started again for both, up to 20 times, and goes on from there.
code=0
srun --kill-on-bad-exit=0 uimjax index build "$config" --out "$out" --devices 8 --limit 900 || code=$?
if [ "$code" -eq 75 ] || { [ "$code" -ge 128 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; }; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
