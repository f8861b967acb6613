# The environment of every node: sourced by ~/.bashrc and by the commands that start Ray.
# One place for what driver, head and workers must agree on; knows no addresses and no secrets.
export PATH="$HOME/venv/bin:$PATH"              # where install.sh puts the libraries
export PYTHONPATH="$HOME/aim_tune"              # the code that `ray up` copied, on every node the same
export RAY_AUTH_MODE=token                      # the token itself is the file ~/.ray/auth_token
export RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true
export MLFLOW_TRACKING_URI=http://127.0.0.1:5000  # only the driver, on the head, talks to MLflow
