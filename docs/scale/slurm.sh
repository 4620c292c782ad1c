#!/bin/bash
# A run on the GPUs of a SLURM allocation: sbatch docs/scale/slurm.sh SUITE [OPTIONS OF gradbench run]
# One task is one worker with one GPU. Without GPUs leave that line out, and set THREADS to the cores of a task.
#SBATCH --job-name=gradbench
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=4
#SBATCH --gpus-per-task=1
#SBATCH --time=01:00:00
set -eu
FILE="$PWD/scheduler-$SLURM_JOB_ID.json"
trap 'kill $(jobs -p) 2>/dev/null; rm -f "$FILE"' EXIT
python -m distributed.cli.dask_scheduler --port 0 --no-dashboard --scheduler-file "$FILE" &
until [ -s "$FILE" ]; do sleep 0.5; done
srun python -m distributed.cli.dask_worker --scheduler-file "$FILE" \
    --nworkers 1 --nthreads "${THREADS:-2}" --no-dashboard --local-directory "${TMPDIR:-/tmp}" &
python -m gradbench run "$@" --cluster "$FILE"
