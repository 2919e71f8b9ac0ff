"""Metrics of mode collapse, fidelity and diversity, computed from arrays of features or counts."""
