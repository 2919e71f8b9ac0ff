#!/usr/bin/env bash
# Run {{ name }} on Slurm: sbatch FILE. The site's options go on that line, as in
# sbatch --partition gpu --account me --time 1-00:00:00 FILE. A job that is requeued, or submitted
# again, resumes from the last checkpoint. Passwords are not here but in the environment of sbatch,
# such as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
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
# Exclusive nodes, because Ray is stopped at the end, with all Rays of this user on the node.
set -euo pipefail

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
export GANRAY_RAY__ADDRESS="$head:6379" RAY_USAGE_STATS_ENABLED=0
export GANRAY_HOME={{ storage | shell }}
export MLFLOW_TRACKING_URI={{ tracking_uri | shell }}
# Ray refuses requests without the token of this job.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 # seconds; a slow disk starts Python slowly

# Starts Ray on every node, the command on the first, and stops Ray when that ends.
srun --kill-on-bad-exit=1{{ container }} \
  ray symmetric-run --address "$GANRAY_RAY__ADDRESS" --min-nodes {{ nodes }} \
  --num-cpus {{ cpus }} --disable-usage-stats \
  -- {{ command }}
