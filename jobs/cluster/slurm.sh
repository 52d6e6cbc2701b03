#!/usr/bin/env bash
# Status: not tried.
#
# A Ray cluster inside a Slurm allocation, one run on it, gone with it: sbatch jobs/cluster/slurm.sh RECIPE [a.b=c …]
# On the time limit Slurm sends SIGTERM 10 minutes early, to this script alone (B:), which passes it on to the driver: the run writes
# a checkpoint and ends; go on with --resume. By hand: scancel --batch --signal=TERM JOB. Plain scancel ends Ray's processes
# and the workers with it, and the run goes on from its last checkpoint.
#SBATCH --job-name=mergevq
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@600
set -euo pipefail

export MERGEVQ_HOME=${MERGEVQ_HOME:?set MERGEVQ_HOME to a folder that all nodes share}
export PATH=${MERGEVQ_VENV:-/opt/mergevq}/bin:$PATH
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$MERGEVQ_HOME/ray_token_$SLURM_JOB_ID RAY_USAGE_STATS_ENABLED=0
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$RAY_AUTH_TOKEN_PATH")
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT

hosts=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
head=${hosts[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname -I | cut -d' ' -f1)
port=$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a node do not meet

srun --nodes=1 --ntasks=1 --nodelist="$head" ray start --head --node-ip-address="$address" --port="$port" \
  --dashboard-host=127.0.0.1 --num-cpus="$SLURM_CPUS_PER_TASK" --block &
sleep 20
for host in "${hosts[@]:1}"; do
  srun --nodes=1 --ntasks=1 --nodelist="$host" ray start --address="$address:$port" --num-cpus="$SLURM_CPUS_PER_TASK" --block &
done
sleep 20

RAY_ADDRESS=$address:$port python -m mergevq_platform.cli train "$@" &
driver=$!
trap 'kill -TERM $driver' TERM
wait $driver || wait $driver # the first wait ends with the signal
