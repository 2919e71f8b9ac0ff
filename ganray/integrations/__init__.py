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
