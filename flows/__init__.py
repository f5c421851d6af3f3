"""The order of things; read trace.py first."""

import storage  # noqa: F401  # sets the environment before Prefect and torch are imported
