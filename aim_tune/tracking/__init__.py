"""Ledger to MLflow, one way. Everything shown there can be thrown away and made again from the ledger.

`content` says what a run shall hold, `store` is the only file that speaks to MLflow, `mirror` keeps
the two equal from a background thread. Importing this package sets, where they are not set, the
environment variables that bound MLflow's patience: by default one call to a dead server takes 246 s.
"""

import os

PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0.5",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
for _name, _value in PATIENCE.items():
    os.environ.setdefault(_name, _value)
