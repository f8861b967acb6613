"""Where requests run. `conductor` decides what runs next and writes the ledger; `in_process` and
`ray_tune` only carry jobs to a process and events back. Same study, same seed: same results from both.

Importing this package sets, where they are not set, the environment variables that Ray and MLflow
read at their import: no phoning home, no loggers of their own, no change of folder in trials.
"""

import os

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DEDUP_LOGS": "0",
    # What a Ray of one's own gathers about itself, for nobody: half of 50 ms of processor time a second.
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
    "RAY_metrics_report_interval_ms": "60000",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",  # else it lists its log files ten times a second
    "LOG_NAME_UPDATE_INTERVAL_S": "60",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # engine.stop does it
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # the ledger is the state
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the ledger keeps them
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)
