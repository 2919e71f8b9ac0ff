#!/usr/bin/env bash
# Run {{ name }} on Slurm: sbatch FILE. The site's options go on that line, as in
# sbatch --partition gpu --account me --time 1-00:00:00 FILE. A job that is requeued, or submitted
# again, resumes from the last checkpoint. This file contains no passwords: set
# MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment of sbatch.
#SBATCH --job-name={{ name }}
#SBATCH --output={{ name }}-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes={{ nodes }}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task={{ cpus }}
{% if gpus %}
#SBATCH --gpus-per-node={{ gpus }}
{% endif %}
#SBATCH --exclusive
#SBATCH --requeue
# Exclusive nodes, because at the end `ray stop` ends every Ray of this user on the node.
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
# An address of its network, as /etc/hosts may map a node's own name to 127.0.1.1.
head=$(srun --nodes=1 --ntasks=1 --nodelist="$first" hostname --all-ip-addresses | awk '{print $1}')
export GANRAY_RAY__ADDRESS="$head:6379" RAY_USAGE_STATS_ENABLED=0
export GANRAY_HOME={{ storage | shell }}
export MLFLOW_TRACKING_URI={{ tracking_uri | shell }}
# Ray refuses requests without the token of this job.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 # seconds; a slow disk starts Python slowly
{% if container and gpus %}
# For Pyxis, which shows a container no GPU otherwise; Slurm restricts it to the GPUs of the job.
export NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
{% endif %}

# Starts Ray on every node, the command on the first, and stops Ray when that ends. It also succeeds
# if Ray does not start, so the command leaves a file. srun needs the number of CPUs once more.
mkdir -p "$GANRAY_HOME"
started=$GANRAY_HOME/slurm-$SLURM_JOB_ID
trap 'rm -f "$started"' EXIT
srun --cpus-per-task={{ cpus }} --kill-on-bad-exit=1{{ container }} \
  ray symmetric-run --address "$GANRAY_RAY__ADDRESS" --min-nodes {{ nodes }} \
  --num-cpus {{ cpus }} --disable-usage-stats \
  -- bash -c 'touch "$0" && exec "$@"' "$started" {{ command }}
[ -e "$started" ] || { echo "Ray did not start; see the lines above" >&2; exit 1; }
