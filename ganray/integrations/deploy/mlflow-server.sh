#!/usr/bin/env bash
# Starts the MLflow server of a cluster's head, on 127.0.0.1:5000, unless it runs already, and waits
# until it answers. Usage: mlflow-server.sh LOCAL SHARED [SECONDS]
#
# SQLite's locks fail on NFS, so the database is in LOCAL, a folder on this machine's own disk.
# Every SECONDS (600) it is copied to SHARED, from where a new head restores it; the copy before is
# kept as mlflow-backup.db.previous. Artifacts are in SHARED.
set -euo pipefail
local_folder=$1 shared=$2 seconds=${3:-600}
database=$local_folder/mlflow.db backup=$shared/mlflow-backup.db
mkdir -p "$local_folder" "$shared"

copy_database() { # as of one moment, while the server goes on writing
  rm -f "$database.copy" &&
    python -c 'import sqlite3, sys
sqlite3.connect(sys.argv[1]).execute("VACUUM INTO ?", sys.argv[2:])' "$database" "$database.copy" &&
    cp "$database.copy" "$backup.part" &&
    is_intact "$backup.part" &&
    { [ ! -e "$backup" ] || ln -f "$backup" "$backup.previous"; } &&
    mv "$backup.part" "$backup"
}

is_intact() { # immutable: without locks
  python -c 'import sqlite3, sys
store = sqlite3.connect(f"file:{sys.argv[1]}?immutable=1", uri=True)
sys.exit([*store.execute("PRAGMA quick_check")] != [("ok",)])' "$1"
}

answers() {
  python -c 'import http.client, sys
server = http.client.HTTPConnection("127.0.0.1", 5000, timeout=5)
server.request("GET", "/health")
sys.exit(server.getresponse().status != 200)' 2>/dev/null
}

exec 9>"$local_folder/lock" # which the server holds as long as it lives
if flock --nonblock 9; then
  if [ ! -e "$database" ] && [ -e "$backup" ]; then
    cp "$backup" "$database.part"
    mv "$database.part" "$database"
  fi
  # setsid: `ray up` runs this in a terminal, and what it starts would end with that.
  MLFLOW_DISABLE_TELEMETRY=true setsid nohup mlflow server --host 127.0.0.1 --port 5000 \
    --workers 1 --backend-store-uri "sqlite:///$database" \
    --artifacts-destination "$shared/mlartifacts" \
    >"$local_folder/server.log" 2>&1 </dev/null &
  server=$!
  (
    trap '' HUP
    while sleep "$seconds" && kill -0 "$server"; do
      [ ! -e "$database" ] || copy_database || echo "no copy was made; the last one is kept"
    done
  ) >"$local_folder/backup.log" 2>&1 </dev/null 9>&- &
fi
exec 9>&-

for _ in {1..60}; do
  if answers; then exit 0; fi
  if flock --nonblock "$local_folder/lock" true; then break; fi # the server has ended
  sleep 1
done
echo "the MLflow server does not answer; the end of $local_folder/server.log:" >&2
tail "$local_folder/server.log" >&2
exit 1
