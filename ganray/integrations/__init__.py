"""Ray and MLflow: the only modules that import them are `ray_*` and `mlflow_*` in this package."""

import logging
import os

# Set before mlflow is imported. With its defaults one call to a dead server blocks for 4 minutes,
# usage reports are sent, and its own messages fill the log.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# MLflow logs a traceback of each failed request to a database, and raises the error as well.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

# Ray would send usage reports; and `ray.train.report` would block for 2 seconds, the default
# interval at which Ray's controller polls.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
# A driver that waits for Ray would notice SIGTERM after up to a second, of the 3 that
# `ray job stop` gives it.
os.environ.setdefault("RAY_get_check_signal_interval_milliseconds", "100")
# Resources are checked first, so workers that do not start yet wait for a node that is booting.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "900")
