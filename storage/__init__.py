"""The only code that touches disk or DuckDB."""

from storage import telemetry

telemetry.silence()
