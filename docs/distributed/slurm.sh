#!/bin/bash
# fewstep as ranks of a Slurm job. In the checkout, after `cargo xtask setup` and `cargo build -p fewstep`:
#   sbatch docs/distributed/slurm.sh run configs/iir/cifar10-vgg16.toml --resume
# The checkout and runs/ are on a file system that all nodes share.
#SBATCH --job-name=fewstep
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
# A GPU for each rank of a node; without this line the ranks work on CPUs. Not --gpus-per-task: then each rank sees one GPU only, and it is
# always number 0.
#SBATCH --gpus-per-node=4
#SBATCH --time=08:00:00
set -euo pipefail

# Rank 0 is on the first node. Jobs that share a node get other ports.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS

# What a rank is called is known to each task only. When one ends, the others end by themselves (run) or go on (sample).
# shellcheck disable=SC2016
srun --kill-on-bad-exit=0 --cpus-per-task="$OMP_NUM_THREADS" bash -c \
  'RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID exec "$0" "$@"' \
  "${FEWSTEP:-target/debug/fewstep}" "$@"
