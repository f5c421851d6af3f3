"""The order of things; read trace.py first."""

import storage  # noqa: F401  # sets every telemetry opt-out before Prefect is imported
