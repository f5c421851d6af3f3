"""The only code that touches disk or DuckDB."""

from storage import environment

environment.prepare()
