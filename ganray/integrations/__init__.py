"""One vendor per file: Ray Train, Ray Tune, MLflow."""
