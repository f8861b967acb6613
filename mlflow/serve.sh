#!/bin/sh
# Shows the trainings of a results folder in MLflow, at http://127.0.0.1:5000. Runs until Ctrl-C;
# where MLflow already answers on that port it says so and ends.
#
#     sh mlflow/serve.sh [results folder, default: results]
#     PORT=5001 sh mlflow/serve.sh                      another port
#     STORE=postgresql://me@host/db sh mlflow/serve.sh  another store than <results folder>/mlflow.db
#     ARTIFACTS=s3://bucket/path                        another place for new artifacts
#     PASSWORD='12 characters or more'                  ask for a login: user admin and this password
#     BIND=0.0.0.0 ALLOWED_HOSTS=head-node:5000         open to others: set PASSWORD as well
set -eu

say() { printf '%s\n' "$*"; }
fail() { say "serve.sh: $*" >&2; exit 2; }

case ${1:-} in
    -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac

folder=${1:-results}
port=${PORT:-5000}
bind=${BIND:-127.0.0.1}
url=http://127.0.0.1:$port
project=$(cd "$(dirname "$0")/.." && pwd)

case $port in
    *[!0-9]*) fail "PORT is '$port'; it has to be a number, such as 5000" ;;
esac
[ -n "${STORE:-}" ] || [ -f "$folder/mlflow.db" ] ||
    fail "no store at $folder/mlflow.db. Run 'python -m aim_tune.search' first, or name the folder that was given to its --out"
[ ! -d "$folder" ] || cd "$folder" # the server may leave files where it is started
here=$(pwd)
STORE=${STORE:-sqlite:///$here/mlflow.db}

# The project's own environment where there is one, else whatever is active.
PATH=$project/.venv/bin:$PATH
command -v mlflow >/dev/null || fail "MLflow is not installed; run 'make .venv/installed' or 'pip install mlflow'"

# SQLAlchemy 2.1 looks for psycopg where no driver is named, 2.0 for psycopg2.
case $STORE in
    postgres://* | postgresql://*)
        driver=$(python3 -c '
from importlib.util import find_spec
print(next((d for d in ("psycopg2", "psycopg") if find_spec(d)), ""))')
        [ -n "$driver" ] || fail "PostgreSQL needs a driver: pip install psycopg2-binary"
        STORE=postgresql+$driver://${STORE#*://}
        ;;
esac

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

set -- --backend-store-uri "$STORE" --artifacts-destination "${ARTIFACTS:-$here/mlartifacts}"
set -- "$@" --host "$bind" --port "$port" --workers 1
[ -z "${ALLOWED_HOSTS:-}" ] || set -- "$@" --allowed-hosts "$ALLOWED_HOSTS"

# A login: MLflow keeps its users in a database of their own, and signs its forms with a secret.
if [ -n "${PASSWORD:-}" ]; then
    [ ${#PASSWORD} -ge 12 ] || fail "PASSWORD has ${#PASSWORD} characters; MLflow wants 12 or more"
    python3 -c 'import flask_wtf' 2>/dev/null || fail "a login needs one more package: pip install 'mlflow[auth]'"
    umask 077
    printf '%s\n' '[mlflow]' 'default_permission = READ' \
        "database_uri = sqlite:///$here/mlflow_users.db" 'admin_username = admin' \
        'authorization_function = mlflow.server.auth:authenticate_request_basic_auth' >mlflow_login.ini
    [ -f mlflow_secret ] || python3 -c 'import secrets; print(secrets.token_hex(32))' >mlflow_secret
    MLFLOW_AUTH_CONFIG_PATH=${MLFLOW_AUTH_CONFIG_PATH:-$here/mlflow_login.ini}
    MLFLOW_AUTH_ADMIN_PASSWORD=$PASSWORD
    MLFLOW_FLASK_SERVER_SECRET_KEY=${MLFLOW_FLASK_SERVER_SECRET_KEY:-$(cat mlflow_secret)}
    export MLFLOW_AUTH_CONFIG_PATH MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY
    unset PASSWORD
    set -- "$@" --app-name basic-auth
else
    case $bind in
        127.* | localhost) ;;
        *) say "serve.sh: open on $bind without a login: whoever reaches it can read and delete runs (PASSWORD=...)" >&2 ;;
    esac
fi

say "MLflow will be at $url in 10 to 40 seconds; Ctrl-C stops it"
MLFLOW_DISABLE_TELEMETRY=true exec mlflow server "$@"
