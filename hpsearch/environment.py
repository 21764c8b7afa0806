"""All environment variables that hpsearch reads or sets, by name.

A variable with an empty value (`HPSEARCH_X=`) counts as unset: the command line removes it.
"""

from __future__ import annotations

from typing import Final

PREFIX: Final = "HPSEARCH_"

# Locations.
HOME: Final = "HPSEARCH_HOME"  # the embedded PostgreSQL, artifacts, logs of local workers
STORAGE: Final = "HPSEARCH_STORAGE"  # URL of a PostgreSQL
STORAGE_PASSWORD_FILE: Final = "HPSEARCH_STORAGE_PASSWORD_FILE"
ARTIFACTS: Final = "HPSEARCH_ARTIFACTS"  # a folder, or s3://BUCKET/PREFIX
DATA: Final = "HPSEARCH_DATA"  # the user's own folder with data sets

# Defaults for options of `run` and `worker`.
WORKERS: Final = "HPSEARCH_WORKERS"
LANES: Final = "HPSEARCH_LANES"
ON: Final = "HPSEARCH_ON"
DEVICE: Final = "HPSEARCH_DEVICE"
WAIT_FOR_GPU: Final = "HPSEARCH_WAIT_FOR_GPU"
SHARE_GPU: Final = "HPSEARCH_SHARE_GPU"
CHECKPOINT_SECONDS: Final = "HPSEARCH_CHECKPOINT_SECONDS"
STALL_SECONDS: Final = "HPSEARCH_STALL_SECONDS"
COMMANDS: Final = "HPSEARCH_COMMANDS"  # 1: studies may run programs; or the hash of the one that may

# Watching workers and studies.
LOG_FORMAT: Final = "HPSEARCH_LOG_FORMAT"  # text or json
LOG_LEVEL: Final = "HPSEARCH_LOG_LEVEL"
METRICS: Final = "HPSEARCH_METRICS"  # HOST:PORT or PORT
LIFE_SIGN: Final = "HPSEARCH_LIFE_SIGN"  # path of a worker's life sign (health file)
LIFE_SIGN_MAX_AGE: Final = "HPSEARCH_LIFE_SIGN_MAX_AGE"  # seconds
ALLOWED_HOSTS: Final = "HPSEARCH_ALLOWED_HOSTS"  # of the dashboard
DASHBOARD_PASSWORD_FILE: Final = "HPSEARCH_DASHBOARD_PASSWORD_FILE"

# Provenance.
COMMIT: Final = "HPSEARCH_COMMIT"  # for installations without a checkout, such as images
USER: Final = "HPSEARCH_USER"  # for containers, whose own user is not a person

# Set by a supervisor for its workers.
SUPERVISOR_PID: Final = "HPSEARCH_SUPERVISOR_PID"
SUPERVISED_WORKERS: Final = "HPSEARCH_SUPERVISED_WORKERS"  # number of workers on this machine: they share its memory
PREPARATION_PIPE: Final = "HPSEARCH_PREPARATION_PIPE"  # a descriptor (worker/preparation_request.py)

# Set for a user's script, and for nothing else (scripts/script_environment.py, trial.py).
REPORTS: Final = "HPSEARCH_REPORTS"  # path of the pipe for its reports
VERDICT: Final = "HPSEARCH_VERDICT"  # path of the file that says whether it should stop
FOLDER: Final = "HPSEARCH_FOLDER"  # path of its attempt's folder
SEED: Final = "HPSEARCH_SEED"
TRIAL: Final = "HPSEARCH_TRIAL"  # number of its trial
ATTEMPT: Final = "HPSEARCH_ATTEMPT"
PARAMETERS: Final = "HPSEARCH_PARAMETERS"  # path of a JSON file with its point
PARAMETER_PREFIX: Final = "HPSEARCH_PARAM_"  # of one variable for each dimension: HPSEARCH_PARAM_LEARNING_RATE
