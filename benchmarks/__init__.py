"""Measurements: ``python -m benchmarks``, and by themselves ``.estimate``, ``.client_privacy``."""
