#!/bin/sh
# Shows the trainings of a results folder in MLflow, at http://127.0.0.1:5000. Runs until Ctrl-C;
# where MLflow already answers on that port it says so and ends.
#
#     sh mlflow/serve.sh [results folder, default: results]
#     PORT=5001 sh mlflow/serve.sh                      another port
#     STORE=postgresql://host/db sh mlflow/serve.sh     another store than <results folder>/mlflow.db
#     ARTIFACTS=s3://bucket/path                        another place for new artifacts
#     BIND=0.0.0.0 ALLOWED_HOSTS=head-node:5000         open to others; there is NO login
set -eu

say() { printf '%s\n' "$*"; }
fail() { say "serve.sh: $*" >&2; exit 2; }

case ${1:-} in
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac

folder=${1:-results}
port=${PORT:-5000}
url=http://127.0.0.1:$port
project=$(cd "$(dirname "$0")/.." && pwd)

case $port in
    *[!0-9]*) fail "PORT is '$port'; it has to be a number, such as 5000" ;;
esac
if [ -z "${STORE:-}" ]; then
    [ -f "$folder/mlflow.db" ] ||
        fail "no store at $folder/mlflow.db. Run 'python -m aim_tune.search' first, or name the folder that was given to its --out"
    cd "$folder" # the server may leave files where it is started
    STORE=sqlite:///$(pwd)/mlflow.db
fi

# The project's own environment where there is one, else whatever is active.
PATH=$project/.venv/bin:$PATH
command -v mlflow >/dev/null || fail "MLflow is not installed; run 'make .venv/installed' or 'pip install mlflow'"

# What answers on the port: mlflow, other or nothing.
answer=$(python3 -c '
import sys, urllib.error, urllib.request
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
try:
    body = direct.open(sys.argv[1] + "/health", timeout=5).read()
    print("mlflow" if body == b"OK" else "other")
except urllib.error.URLError as error:
    print("nothing" if isinstance(error.reason, ConnectionRefusedError) else "other")
except OSError:
    print("other")' "$url")
case $answer in
    mlflow) say "MLflow is already at $url (showing another store? PORT=5001 sh $0)"; exit 0 ;;
    other) fail "port $port is taken by another program; choose another: PORT=5001 sh $0" ;;
esac

say "MLflow will be at $url in 10 to 40 seconds; Ctrl-C stops it"
set -- --backend-store-uri "$STORE" --artifacts-destination "${ARTIFACTS:-$(pwd)/mlartifacts}"
set -- "$@" --host "${BIND:-127.0.0.1}" --port "$port" --workers 1
[ -z "${ALLOWED_HOSTS:-}" ] || set -- "$@" --allowed-hosts "$ALLOWED_HOSTS"
MLFLOW_DISABLE_TELEMETRY=true exec mlflow server "$@"
