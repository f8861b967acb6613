"""Ledger to MLflow, one way. Everything shown there can be thrown away and made again from the ledger.

`content` says what a run shall hold, `store` is the only file that speaks to MLflow, `mirror` keeps
the two equal from a background thread. Importing this package sets, where they are not set, the
environment variables that make MLflow impatient (one call to a dead server takes 246 s by default)
and quiet.
"""

import os

SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0.5",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines per run, amid the progress bar
}
for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)
