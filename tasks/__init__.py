"""Prefect tasks, one stage per file: read, compute, write."""
