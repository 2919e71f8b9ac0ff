"""The training loop, its state, launcher interface and journal. Independent of Ray and MLflow."""
