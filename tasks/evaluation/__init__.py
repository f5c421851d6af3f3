"""Metrics and statistics: NumPy and SciPy only; no storage, no orchestration."""
