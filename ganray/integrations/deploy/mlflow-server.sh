#!/usr/bin/env bash
# Starts the MLflow server of a cluster's head, on 127.0.0.1:5000, unless it runs already.
# Usage: mlflow-server.sh LOCAL SHARED [SECONDS]
#
# SQLite's locks fail on NFS, so the database is in LOCAL, a folder on this machine's own disk. Every
# SECONDS (600) it is copied to SHARED, from where a new head restores it. Artifacts are in SHARED.
set -euo pipefail
local_folder=$1 shared=$2 seconds=${3:-600}
database=$local_folder/mlflow.db backup=$shared/mlflow-backup.db
mkdir -p "$local_folder" "$shared"

exec 9>"$local_folder/lock" # the server and the copying below hold it, too
flock --nonblock 9 || exit 0

copy_database() { # as of one moment, while the server goes on writing
  rm -f "$database.copy"
  python -c 'import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute("VACUUM INTO ?", sys.argv[2:])' \
    "$database" "$database.copy"
  cp "$database.copy" "$backup.part"
  mv "$backup.part" "$backup"
}

if [ ! -e "$database" ] && [ -e "$backup" ]; then
  cp "$backup" "$database.part"
  mv "$database.part" "$database"
fi

# setsid: `ray up` runs this in a terminal, and what it starts would end with that.
MLFLOW_DISABLE_TELEMETRY=true setsid nohup mlflow server --host 127.0.0.1 --port 5000 --workers 1 \
  --backend-store-uri "sqlite:///$database" --artifacts-destination "$shared/mlartifacts" \
  >"$local_folder/server.log" 2>&1 </dev/null &
(
  trap '' HUP
  while sleep "$seconds"; do
    [ ! -e "$database" ] || copy_database || true
  done
) >"$local_folder/backup.log" 2>&1 </dev/null &
