#!/usr/bin/env bash
#SBATCH --job-name=robustq
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-task=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@60
# A Ray cluster of the nodes of this allocation, with a driver on the first. Usage: sbatch slurm.sh study.yaml
#
# The store must lie on a disk of the first node or on a PostgreSQL server (ROBUSTQ_STORE), artifacts where all nodes see
# them. Set both for your site. The nodes must be this job's own: at its end `ray stop` ends every Ray of yours on them.
set -euo pipefail

export ROBUSTQ_STORE=${ROBUSTQ_STORE:?a PostgreSQL URL, such as postgresql+psycopg://me@server/robustq}
export ROBUSTQ_ARTIFACTS=${ROBUSTQ_ARTIFACTS:-$HOME/robustq-artifacts}
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(openssl rand -hex 32)

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# Runs `ray start` on every node, and the driver on the head once all of them are there.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1 \
    ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" -- \
    robustq run "$1" --address "$head:6379"
