"""The mathematics of attribution: torch and transformers only; no Prefect, Dask, DuckDB or storage."""
