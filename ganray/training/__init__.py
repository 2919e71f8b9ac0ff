"""The loop and what it needs: state, where it runs, what it leaves behind. No Ray, no MLflow."""
