#!/bin/sh
# MLflow on the head, at http://127.0.0.1:5000 of the head only; started once, however often it is run.
#     sh mlflow.sh /mnt/shared/aim_tune        (or s3://BUCKET/PREFIX)
# The database is on the head's own disk (sqlite on a network disk can be damaged), the artifacts
# beside the storage. A lost head costs no record: the ledger fills a new store (docs/cluster.md).
set -eu
storage=$1
here=$(cd "$(dirname "$0")" && pwd)
. "$here/env.sh"

health() {
    python3 -c '
import urllib.request
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
assert direct.open("http://127.0.0.1:5000/health", timeout=5).read() == b"OK"' 2>/dev/null
}

health && exit 0
mkdir -p "$HOME/mlflow"
case $storage in /*) mkdir -p "$storage/mlartifacts" ;; esac
STORE=${STORE:-sqlite:///$HOME/mlflow/mlflow.db} ARTIFACTS=$storage/mlartifacts \
    setsid nohup sh "$here/../mlflow/serve.sh" >"$HOME/mlflow/serve.log" 2>&1 </dev/null &
tries=0
until health; do
    tries=$((tries + 1))
    [ "$tries" -lt 60 ] || { tail -n 20 "$HOME/mlflow/serve.log" >&2; echo "mlflow.sh: MLflow did not come up; see ~/mlflow/serve.log on the head" >&2; exit 1; }
    sleep 2
done
